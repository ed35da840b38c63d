"""How long and how often to measure, who is up, and one run of a peer as figures, or void."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from benchmarks.child import Child
from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.pairing import Measured, Runner, Void
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import Questions, WrongAnswer
from engines.hardware import usable_threads

__all__ = ["IN_PROCESS", "Effort", "in_process", "loaded", "runners", "up"]

IN_PROCESS = "in-process"


@dataclass(frozen=True)
class Effort:
    """`rounds` of `seconds` each; `requests` of the run that looks for growth of memory."""

    rounds: int = 7
    seconds: int = 4
    requests: int = 1_000_000


@contextlib.contextmanager
def up(modules: Sequence[ModuleType], models: Sequence[Served], folder: Path) -> Iterator[dict[str, Peer]]:
    """These peers at once, each with these models, by name; `folder` takes their files."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Peer] = {}
        for module in modules:
            own = folder / module.__name__.rsplit(".", 1)[-1]
            own.mkdir()
            found[module.NAME] = stack.enter_context(module.up(models, own))
        yield found


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


def in_process(child: Child, batch: int, seconds: int) -> Measured:
    """One caller that waits for batches of so many rows, with the threads that every peer's engine has."""
    found = child.alone(usable_threads(), batch, seconds)
    return {**found, "requests_per_s": found["rows_per_s"], "cpu_s_per_request": found["cpu_s_per_row"]}


def runners(
    peers: Mapping[str, Peer], kind: str, questions: Questions, folder: Path, connections: int, effort: Effort,
    child: Child | None = None,
) -> dict[str, Runner]:  # fmt: skip
    """Those that speak this kind, warm, and the engine alone: batches of as many rows as there are connections."""
    found: dict[str, Runner] = {}
    for name, peer in peers.items():
        if kind in peer.wordings:
            with contextlib.suppress(Void):  # it will be void again, and be named then
                loaded(peer, kind, questions, folder, connections, 1)
            found[name] = functools.partial(loaded, peer, kind, questions, folder, connections, effort.seconds)
    if child is not None:
        found[IN_PROCESS] = functools.partial(in_process, child, min(connections, MAX_BATCH), effort.seconds)
    return found
