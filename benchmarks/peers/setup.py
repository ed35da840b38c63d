"""How long and how often to measure, who is up, and one run of a peer as figures, or void."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.child import Child
from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.pairing import Measured, Runner, Void, interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import Questions, WrongAnswer
from engines.hardware import usable_threads

__all__ = ["IN_PROCESS", "Effort", "Standing", "case", "loaded", "runners", "up"]

IN_PROCESS = "in-process"


@dataclass(frozen=True)
class Effort:
    """`rounds` of `seconds` each; `requests` of the run that looks for growth of memory."""

    rounds: int = 7
    seconds: int = 2
    requests: int = 1_000_000


@dataclass
class Standing:
    """Who is up, by name, and why others are not."""

    peers: dict[str, Peer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def up(modules: Sequence[ModuleType], models: Sequence[Served], folder: Path) -> Iterator[Standing]:
    """These peers at once, each with these models; `folder` takes their files. One that does not start is absent."""
    with contextlib.ExitStack() as stack:
        standing = Standing()
        for module in modules:
            own = folder / module.__name__.rsplit(".", 1)[-1]
            own.mkdir()
            try:
                standing.peers[module.NAME] = stack.enter_context(module.up(models, own))
            except (RuntimeError, AssertionError, OSError, subprocess.CalledProcessError) as error:
                print(f"{module.NAME} did not start: {error}", file=sys.stderr)
                standing.absent[module.NAME] = "did not start"
        yield standing


def loaded(
    peer: Peer, kind: str, questions: Questions, folder: Path, connections: int, seconds: int
) -> Measured:  # fmt: skip
    """One run of wrk; Void with what was wrong."""
    try:
        run = peer.load(kind, questions, folder, connections, seconds)
    except (WrongAnswer, OSError, RuntimeError) as error:
        raise Void(str(error)) from error
    if run.failures or not run.requests:
        unsound = f"{run.refused} not 2xx, {run.broken} socket errors, {run.wrong} unexpected answers"
        raise Void(f"{run.requests} requests: {unsound}")
    figures = asdict(run)
    del figures["kept"]
    return figures


def _in_process(child: Child, batch: int, seconds: int) -> Measured:
    """One caller that waits for batches of so many rows, with the threads that every peer's engine has."""
    found = child.alone(usable_threads(), batch, seconds)
    return {**found, "requests_per_s": found["rows_per_s"], "cpu_s_per_request": found["cpu_s_per_row"]}


def runners(
    standing: Standing, kind: str, questions: Questions, folder: Path, connections: int, effort: Effort,
    child: Child | None = None,
) -> dict[str, Runner]:  # fmt: skip
    """Those that speak this kind, warm, and the engine alone: batches of as many rows as there are connections."""
    found: dict[str, Runner] = {}
    for name, peer in standing.peers.items():
        if kind in peer.wordings:
            with contextlib.suppress(Void):  # it will be void again, and be named then
                loaded(peer, kind, questions, folder, connections, 1)
            found[name] = functools.partial(loaded, peer, kind, questions, folder, connections, effort.seconds)
    if child is not None:
        found[IN_PROCESS] = functools.partial(_in_process, child, min(connections, MAX_BATCH), effort.seconds)
    return found


def case(
    standing: Standing, kind: str, questions: Questions, folder: Path, connections: int, effort: Effort,
    child: Child | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All rounds of all of them, for JSON."""
    turns = runners(standing, kind, questions, folder, connections, effort, child)
    found = interleaved(turns, effort.rounds, standing.absent)
    return {"kind": kind, "connections": connections, **found.as_dict()}
