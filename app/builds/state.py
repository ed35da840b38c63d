"""What is known of a build: what was asked (written once), and how far it is (replaced as a whole)."""

from __future__ import annotations

import datetime
import enum
import hashlib
import itertools
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from engines.steps import CANONICAL_PASSES

__all__ = [
    "STAGES", "Advance", "Asked", "BuildState", "Event", "Progress", "is_served_instead", "lasted_ns", "percent_of",
    "served_instead", "upload_key",
]  # fmt: skip

STAGES = {
    "queued": 0, "guard": 2, "read": 4, "rewrite": 6,
    **{name: 8 + number for number, name in enumerate(CANONICAL_PASSES)},
    "compare": 16, "image inputs": 17, "widen halves": 18, "prove": 20, "measure": 40, "compile": 50, "check": 55,
    "halve": 56, "prune": 57, "quantize": 60, "search": 70, "race": 80, "judge": 84,
    "build tensorrt-rtx": 86, "build tensorrt": 88, "publish": 90, "load": 95, "done": 100,
}  # fmt: skip
"""In the order in which a build passes them, with the share of it that is done when one begins."""
_NEXT = {stage: then for (stage, _), (_, then) in itertools.pairwise(STAGES.items())}
Advance = Callable[[str, float], None]
"""Told a stage, and how much of it is done: 0 when it begins, at most 1."""

_INSTEAD = "; the FP32 engine, proven before, serves instead"
_WITHOUT_PLANS = "; the engine that was chosen before serves, without plans for GPUs"


class BuildState(enum.StrEnum):
    """Where a build is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (BuildState.QUEUED, BuildState.RUNNING)


class Asked(BaseModel):
    """A build as it was accepted. `key` is the same for the same file sent for the same model."""

    model_config = ConfigDict(frozen=True)

    id: str
    model: str
    key: str
    file_name: str
    sha256: str
    size_bytes: int
    created: str = Field(description="ISO 8601, UTC.")
    targets: tuple[str, ...] = ()
    """Of its spec, those that are not the CPU."""


class Progress(BaseModel):
    """How far a build is."""

    model_config = ConfigDict(frozen=True)

    state: BuildState = BuildState.QUEUED
    stage: str = "queued"
    percent: int = 0
    version: int | None = Field(None, ge=0)
    error: str | None = None
    attempts: int = 0
    started: str | None = None
    ended: str | None = None


class Event(BaseModel):
    """Something that happened: a stage began, a line was logged, or the build ended."""

    model_config = ConfigDict(frozen=True)

    time: str
    state: BuildState
    stage: str
    percent: int
    message: str = ""


def lasted_ns(progress: Progress) -> int:
    """From its first start to its end; 0 for one that never ran, or does not say when."""
    if progress.started is None or progress.ended is None:
        return 0
    try:
        took = datetime.datetime.fromisoformat(progress.ended) - datetime.datetime.fromisoformat(progress.started)
    except (ValueError, TypeError):  # not written by us
        return 0
    return max(0, round(took.total_seconds() * 1e9))


def upload_key(model: str, digests: Mapping[str, str]) -> str:
    """The same for the same upload: the name, and the hash of every file by its name (`BuildRequest.digests`)."""
    lines = [model, *(f"{name}={digest}" for name, digest in sorted(digests.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def percent_of(stage: str, share: float, before: int) -> int:
    """The percent shown when so much of a stage is done; it never falls, whatever order the stages come in."""
    begun = STAGES.get(stage, before)
    return max(before, begun + int(share * (_NEXT.get(stage, begun) - begun)))


def served_instead(reason: str, *, is_whole: bool = False) -> str:
    """What the log of a build says that came to no good end (the reason) after an engine was proven: that in FP32, or
    the one that was chosen (`is_whole`).
    """
    return f"{reason}{_WITHOUT_PLANS if is_whole else _INSTEAD}"


def is_served_instead(line: str) -> bool:
    """Whether a line of a build's log is of that kind."""
    return line.endswith((_INSTEAD, _WITHOUT_PLANS))
