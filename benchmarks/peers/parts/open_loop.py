"""Latency of the tiny MLP where requests come at a rate and wait for nobody: at 50, 80, 95 % of what a server can."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers import bitserve, triton
from benchmarks.peers.arrivals import as_fast_as_answered, poisson
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Measured, Rounds, Void, interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import Questions, WrongAnswer, questions_for
from benchmarks.peers.setup import Effort, Standing, up
from benchmarks.peers.wording import BINARY, JSON
from benchmarks.peers.words import row, why_void

__all__ = ["arrived", "measure", "rows"]

CONNECTIONS = 64
SHARES = (0.5, 0.8, 0.95)
_RATE = "requests_per_s"
_FIRST = 5000
"""Requests, to learn how many a longer run takes."""


def measure(effort: Effort) -> dict[str, Any]:
    """Capacity by the same program with all requests due at once; shares are of each server's own."""
    served = tiny()
    questions = questions_for(served)
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, triton), [served], folder) as standing:
            for kind in (BINARY, JSON):
                capacity = _capacity(standing, kind, questions, folder, effort)
                able = {name: capacity.median(name, _RATE) for name in standing.peers}
                for share in SHARES:
                    turns = {
                        name: functools.partial(
                            arrived, peer, kind, questions, folder, share * (able[name] or 0), effort.seconds
                        )
                        for name, peer in standing.peers.items()
                        if able[name]
                    }
                    found = interleaved(turns, effort.rounds, {**standing.absent, **capacity.void})
                    cases.append({"kind": kind, "share": share, "capacity": able, **found.as_dict()})
    return {"cases": cases}


def _capacity(standing: Standing, kind: str, questions: Questions, folder: Path, effort: Effort) -> Rounds:
    turns = {
        name: functools.partial(_saturated, peer, kind, questions, folder, effort.seconds)
        for name, peer in standing.peers.items()
    }
    return interleaved(turns, effort.rounds, standing.absent)


def _saturated(peer: Peer, kind: str, questions: Questions, folder: Path, seconds: int) -> Measured:
    first = _sound(peer, kind, questions, folder, as_fast_as_answered(_FIRST))
    return _sound(peer, kind, questions, folder, as_fast_as_answered(max(1, int(first[_RATE] * seconds))))


def arrived(
    peer: Peer, kind: str, questions: Questions, folder: Path, rate_per_s: float, seconds: int
) -> Measured:  # fmt: skip
    """Poisson arrivals, the same for everybody but for their rate; Void with what was wrong."""
    return _sound(peer, kind, questions, folder, poisson(rate_per_s, seconds))


def _sound(peer: Peer, kind: str, questions: Questions, folder: Path, due_s: Any) -> Measured:
    try:
        run = peer.arrive(kind, questions, folder, CONNECTIONS, due_s)
    except (WrongAnswer, OSError, RuntimeError) as error:
        raise Void(str(error)) from error
    if run.failures:
        raise Void(f"{run.failures} of {run.requests} requests failed")
    figures = asdict(run)
    del figures["kept"]
    return figures


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """p50 and p99 of each."""
    table = []
    for one in found["cases"]:
        rounds = Rounds.from_dict(one)
        said = "; ".join(_said(rounds, name, one["capacity"].get(name)) for name in (bitserve.NAME, triton.NAME))
        what = f"tiny MLP [1,64], {one['kind']}, open loop at {one['share']:.0%} of a server's own capacity: p50, p99"
        table.append(row(what, said))
    return table


def _said(rounds: Rounds, name: str, capacity: float | None) -> str:
    p50, p99 = (rounds.median(name, key) for key in ("p50_ms", "p99_ms"))
    if p50 is None or p99 is None or capacity is None:
        return why_void(rounds, name)
    return f"{name} {p50:.2f}, {p99:.2f} ms (capacity {capacity:.0f} requests/s)"
