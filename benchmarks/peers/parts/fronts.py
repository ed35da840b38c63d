"""One front end against two: what a second process brings, and what is left for the one that runs the engines."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import bitserve, two_fronts
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Measured, Rounds, Runner, interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import Effort, runners, up
from benchmarks.peers.wording import BINARY, JSON
from benchmarks.peers.words import against, row, why_void

__all__ = ["CONNECTIONS", "measure", "rows"]

CONNECTIONS = (16, 64, 256)
_RATE, _ENGINE = "requests_per_s", "engine_cpu_s_per_request"


def measure(effort: Effort, connections: tuple[int, ...] = CONNECTIONS) -> dict[str, Any]:
    """The tiny MLP, in turn."""
    served = tiny()
    questions = questions_for(served)
    cases = []
    with tempfile.TemporaryDirectory() as name, up((bitserve, two_fronts), [served], Path(name)) as standing:
        for kind in (BINARY, JSON):
            for count in connections:
                turns = runners(standing, kind, questions, Path(name), count, effort)
                if two_fronts.NAME in turns:
                    turns[two_fronts.NAME] = _with_engine(turns[two_fronts.NAME], standing.peers[two_fronts.NAME])
                found = interleaved(turns, effort.rounds, standing.absent)
                cases.append({"kind": kind, "connections": count, **found.as_dict()})
    return {"cases": cases}


def _with_engine(runner: Runner, peer: Peer) -> Runner:
    """The same run, and the CPU time that the engine process took for it."""
    engine = _engine(peer)

    def run() -> Measured:
        before = engine.cpu_times()
        found = runner()
        after = engine.cpu_times()
        spent_s = after.user + after.system - before.user - before.system
        return {**found, _ENGINE: spent_s / found["requests"]}

    return run


def _engine(peer: Peer) -> psutil.Process:
    """The child that takes no connections."""
    first, *_ = peer.tree.members()
    (engine,) = [
        child
        for child in first.children()
        if not any(found.status == psutil.CONN_LISTEN for found in child.net_connections("tcp"))
    ]
    return engine


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Rates, and the engine's CPU time."""
    table = []
    for one in found["cases"]:
        rounds = Rounds.from_dict(one)
        what = f"tiny MLP [1,64], {one['kind']}, {one['connections']} connections of wrk"
        table.append(
            row(
                f"{what}: requests/s with 2 front ends against 1",
                against(rounds, _RATE, two_fronts.NAME, bitserve.NAME, "requests/s"),
                ">= 1.00x",
            )
        )
        spent_s = rounds.median(two_fronts.NAME, _ENGINE)
        said = why_void(rounds, two_fronts.NAME) if spent_s is None else f"{1e6 * spent_s:.0f} us"
        table.append(row("the same: CPU time of the engine process a request", said, "< 40 us"))
    return table
