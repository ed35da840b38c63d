"""Counters and histograms of one model version: one flat array of integers with fixed places.

An update costs some tenths of a microsecond, and the array may lie in memory that processes share: a front end counts
in its own, and a reader adds them up (`summed`).
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from app.serving.ticket import Outcome

__all__ = ["BUCKETS_S", "FAILURE_REASONS", "OUTCOMES", "PHASES", "ROW_BUCKETS", "Histogram", "Stats", "summed"]

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: from 100 us, since a small network answers in less than a millisecond."""
_BUCKETS_NS = tuple(round(bound * 1e9) for bound in BUCKETS_S)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PHASES = ("input", "infer", "output")
OUTCOMES = tuple(Outcome)
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_REASON_OF = {
    Outcome.REJECTED: "REJECTED",
    Outcome.EXPIRED: "REJECTED",  # Triton counts a queue timeout as a rejection
    Outcome.CANCELLED: "CANCELED",
    Outcome.FAILED: "BACKEND",
}
_COMPUTED = (Outcome.SUCCESS, Outcome.FAILED)
_TOTAL, _WIDTH = len(_BUCKETS_NS) + 1, len(_BUCKETS_NS) + 2
"""Of a histogram of durations: where its sum lies, and how many cells it has."""
_REQUEST, _QUEUE, _COMPUTE = 0, len(OUTCOMES) * _WIDTH, 2 * len(OUTCOMES) * _WIDTH
"""Where the histograms of successful requests begin; success is the first outcome."""
_OUTPUT = _COMPUTE + PHASES.index("output") * _WIDTH
Cells = memoryview
"""Of 64-bit signed integers ('q'), writable: nanoseconds of 290 years of requests fit each."""


def _zeros(count: int) -> Cells:
    return memoryview(array("q", bytes(8 * count)))


def _observe_all(cells: Cells, at: int, values_ns: list[int]) -> None:
    """As `observe` of each, of the histogram of durations at this place; the values are sorted on the way.

    Metrics are a part of what a small request costs: values of one batch are much alike, so buckets are walked instead.
    """
    if len(values_ns) == 1:
        cells[at + bisect_left(_BUCKETS_NS, values_ns[0])] += 1
        cells[at + _TOTAL] += values_ns[0]
        return
    values_ns.sort()
    cells[at + _TOTAL] += sum(values_ns)
    bucket, begin = bisect_left(_BUCKETS_NS, values_ns[0]), 0
    last = bisect_left(_BUCKETS_NS, values_ns[-1])
    while bucket < last:
        end = bisect_right(values_ns, _BUCKETS_NS[bucket])
        cells[at + bucket] += end - begin
        bucket, begin = bucket + 1, end
    cells[at + last] += len(values_ns) - begin


class Histogram:
    """Counts per bucket (the last one is +Inf) and the sum, in the unit of its bounds: len(bounds) + 2 cells."""

    __slots__ = ("_cells", "_total_at", "bounds")

    def __init__(self, bounds: Sequence[int], cells: Cells | None = None) -> None:
        self.bounds = bounds
        self._total_at = len(bounds) + 1
        self._cells = _zeros(self._total_at + 1) if cells is None else cells

    def observe(self, value: int, times: int = 1) -> None:
        cells = self._cells
        cells[bisect_left(self.bounds, value)] += times
        cells[self._total_at] += value * times

    @property
    def counts(self) -> list[int]:
        return self._cells[: self._total_at].tolist()

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def total(self) -> int:
        return self._cells[self._total_at]


class Stats:
    """Everything measured of one version. Durations are nanoseconds, charged per request as Triton does:

    each request of a batch is charged the whole batch's compute time, until its own answer; `batch_*` are per
    execution. What is counted once for each batch and has no fixed number of places (`flushes`, `batches`) is kept
    beside the cells: the process that runs the batches is the only one to count them.
    """

    CELLS = (2 * len(OUTCOMES) + len(_COMPUTED) * len(PHASES)) * _WIDTH + (
        len(ROW_BUCKETS) + 2 + len(FAILURE_REASONS) + 3
    )
    """How many integers one needs."""

    def __init__(self, cells: Cells | None = None) -> None:
        self._left = self.cells = _zeros(self.CELLS) if cells is None else cells
        self.request_ns = {outcome: self._histogram(_BUCKETS_NS) for outcome in OUTCOMES}
        self.queue_ns = {outcome: self._histogram(_BUCKETS_NS) for outcome in OUTCOMES}
        self.compute_ns = {outcome: [self._histogram(_BUCKETS_NS) for _ in PHASES] for outcome in _COMPUTED}
        self.batch_rows = self._histogram(ROW_BUCKETS)
        self._failures = self._take(len(FAILURE_REASONS))
        self._executed = self._take(3)  # rows, batches, Unix time of the last one in milliseconds
        self.flushes: dict[str, int] = {}
        self.batches: dict[int, list[int]] = {}
        """rows -> [executions, compute_input ns, compute_infer ns, compute_output ns]"""

    def _take(self, count: int) -> Cells:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def _histogram(self, bounds: Sequence[int]) -> Histogram:
        return Histogram(bounds, self._take(len(bounds) + 2))

    @property
    def failures(self) -> dict[str, int]:
        return dict(zip(FAILURE_REASONS, self._failures.tolist(), strict=True))

    @property
    def inferred_rows(self) -> int:
        return self._executed[0]

    @property
    def executions(self) -> int:
        return self._executed[1]

    @property
    def last_inference_ms(self) -> int:
        return self._executed[2]

    def answered(
        self, request_ns: list[int], queue_ns: list[int], output_ns: list[int], input_and_infer_ns: tuple[int, int]
    ) -> None:
        """The requests of one batch succeeded, each with its time in the queue and until it was handed its outputs.

        `request_ns` has the times of those that no front end measures. The lists are sorted here.
        """
        cells, requests = self.cells, len(queue_ns)
        if request_ns:
            _observe_all(cells, _REQUEST, request_ns)
        if queue_ns:
            _observe_all(cells, _QUEUE, queue_ns)
            _observe_all(cells, _OUTPUT, output_ns)
        at = _COMPUTE
        for spent_ns in input_and_infer_ns:
            cells[at + bisect_left(_BUCKETS_NS, spent_ns)] += requests
            cells[at + _TOTAL] += spent_ns * requests
            at += _WIDTH

    def observe_compute(self, outcome: Outcome, compute: tuple[int, int, int], requests: int = 1) -> None:
        """The three phases of the batch of so many requests: input, infer, output."""
        for histogram, spent_ns in zip(self.compute_ns[outcome], compute, strict=True):
            histogram.observe(spent_ns, requests)

    def ended(self, outcome: Outcome, request_ns: int, queue_ns: int | None, reason: str | None = None) -> None:
        """One request ended without outputs; `queue_ns` None where it never waited."""
        self.request_ns[outcome].observe(request_ns)
        if queue_ns is not None:
            self.queue_ns[outcome].observe(queue_ns)
        self._failures[FAILURE_REASONS.index(reason or _REASON_OF[outcome])] += 1

    def executed(self, rows: int, reason: str, compute: tuple[int, int, int]) -> None:
        """One batch ran to its end."""
        self.batch_rows.observe(rows)
        self.flushes[reason] = self.flushes.get(reason, 0) + 1
        entry = self.batches.get(rows)
        if entry is None:
            entry = self.batches[rows] = [0, 0, 0, 0]
        input_ns, infer_ns, output_ns = compute
        entry[0] += 1
        entry[1] += input_ns
        entry[2] += infer_ns
        entry[3] += output_ns
        executed = self._executed
        executed[0] += rows
        executed[1] += 1
        executed[2] = time.time_ns() // 1_000_000


def summed(stats: Stats, others: Sequence[Cells]) -> Stats:
    """The statistics with what other processes have counted of the same version; a copy where there are others."""
    if not others:
        return stats
    total = np.sum([np.frombuffer(cells, np.int64) for cells in (stats.cells, *others)], axis=0)
    both = Stats(memoryview(total))
    both.flushes, both.batches = stats.flushes, stats.batches
    return both
