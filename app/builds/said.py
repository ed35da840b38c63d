"""What a child says on its stdout: JSON, a line each. It may say anything, and much of it; little is kept."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import NamedTuple

from app.builds.state import STAGES, Advance, percent_of
from app.words import printable

__all__ = ["Wanted", "read_said"]

log = logging.getLogger(__name__)
_KEPT_LINE_BYTES = 65536
_KEPT_VALUE_CHARS = 1000
_LINES_AT_ONCE = 64
"""Between two turns of everything else on the event loop."""
_MOST_CHANGES, _MOST_LOGS = 500, 20
"""Of the stage without one of the percent (a search passes the same stages for every engine), and lines for the log."""
_OF_A_CHILD = frozenset(STAGES) - {"queued", "load", "done"}


class Wanted(NamedTuple):
    """Fields of a child's lines: that of its success, and those that say it may end as it likes from then on; of these
    a later one is worth more.
    """

    result: str
    fallbacks: tuple[str, ...] = ()


async def read_said(pipe: asyncio.StreamReader, said: dict[str, str], wanted: Wanted, progress: Advance) -> None:
    """Merge the child's JSON lines into `said`: the last stage, the error if it gave one, what is `wanted`. All else is
    ignored.

    `progress` is told what changes what is shown of it, at most once in a turn of the event loop: telling it writes to
    the disk.
    """
    kept = {"stage", "error", wanted.result, *wanted.fallbacks}
    stages, logs, line, count = _Stages(progress), 0, b"", 0
    while chunk := await pipe.read(_KEPT_LINE_BYTES):
        *whole, line = (line + chunk).split(b"\n")
        for text in whole:
            found = _fields(text)
            said.update({key: value for key, value in found.items() if key in kept})
            if "log" in found and logs < _MOST_LOGS:  # what of the sandbox this kernel does not have
                logs += 1
                log.warning("a compile says: %s", found["log"])
            count += 1
            if stages.take(found) or count % _LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
        line = line[:_KEPT_LINE_BYTES]


class _Stages:
    """Which of the stages that a child says are worth telling."""

    def __init__(self, progress: Advance) -> None:
        self._progress, self._shown, self._changes = progress, ("", 0), 0

    def take(self, found: dict[str, str]) -> bool:
        """Tell a stage that is one, if it would be seen; whether it was told."""
        stage, before = found.get("stage", ""), self._shown[1]
        if stage not in _OF_A_CHILD:
            return False
        share = _share_of(found)
        percent = percent_of(stage, share, before)
        if (stage, percent) == self._shown:
            return False
        if percent == before:
            if self._changes == _MOST_CHANGES:
                return False
            self._changes += 1
        self._shown = stage, percent
        try:
            self._progress(stage, share)
        except Exception:  # whatever the caller makes of it, later lines are read: the reason is among them
            log.exception("the stage of a compile could not be noted")
        return True


def _share_of(found: dict[str, str]) -> float:
    """From 0 to 1, whatever the child says."""
    try:
        return min(1.0, max(0.0, float(found["share"]))) if "share" in found else 0.0
    except ValueError:
        return 0.0


def _fields(line: bytes) -> dict[str, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # libraries print there too
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: printable(value)[:_KEPT_VALUE_CHARS] for key, value in found.items() if isinstance(value, str)}
