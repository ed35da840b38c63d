"""Time several engines side by side: turn by turn, so that a slow moment of the machine is a slow moment for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import openvino as ov

from engines.reference import Arrays
from engines.targets.openvino import filled_requests

__all__ = ["Pace", "race"]

_MOST_ROWS = 8
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 40
_TURN_S = 0.01
_BATCH_S = 0.2
"""What a batch may take, by the time of a row: of slow ones fewer rows are run together."""


class Pace(NamedTuple):
    """Medians over all turns: of one row alone, and of all streams with a batch each."""

    latency_us: float
    rows_per_s: float


def race(
    engines: Sequence[ov.CompiledModel], batch_of: Callable[[int], Arrays], *, batched: bool, budget_s: float = 3.0
) -> list[Pace]:
    """At least 5 turns of each, at most 40, no round begun after `budget_s`; who begins changes from round to round.

    `batch_of(rows)` makes an input of that many rows; only one row is asked for where the model is not `batched`.
    """
    runners = [_Runner(engine, batch_of, batched=batched) for engine in engines]
    started, rounds = time.perf_counter(), 0
    while rounds < _FEWEST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() - started < budget_s):
        for turn in range(len(runners)):
            runners[(turn + rounds) % len(runners)].take_turn()
        rounds += 1
    return [runner.pace() for runner in runners]


class _Runner:
    def __init__(self, engine: ov.CompiledModel, batch_of: Callable[[int], Arrays], *, batched: bool) -> None:
        self._single = filled_requests(engine, batch_of(1), 1)
        started = time.perf_counter()
        _run(self._single)
        row_s = time.perf_counter() - started
        self._rows = max(1, min(_MOST_ROWS, int(_BATCH_S / row_s))) if batched else 1
        self._pool = filled_requests(engine, batch_of(self._rows), int(engine.get_property("NUM_STREAMS")))
        self._alone_s: list[float] = []
        self._rates: list[float] = []

    def take_turn(self) -> None:
        self._alone_s.append(_repeated(self._single)[0])
        each_s, count = _repeated(self._pool)
        self._rates.append(self._rows * count / each_s)

    def pace(self) -> Pace:
        return Pace(round(statistics.median(self._alone_s) * 1e6, 1), round(statistics.median(self._rates), 1))


def _repeated(requests: Sequence[ov.InferRequest]) -> tuple[float, int]:
    """Seconds of one run of all requests side by side, over as many runs as fit into a turn; how many they are."""
    started, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - started < _TURN_S:
        _run(requests)
        runs += 1
    return (time.perf_counter() - started) / runs, len(requests)


def _run(requests: Sequence[ov.InferRequest]) -> None:
    for request in requests:
        request.start_async()
    for request in requests:
        request.wait()
