"""Counters and histograms of one model version: flat lists, since an update must cost well under 1 us."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from app.serving.ticket import Outcome

__all__ = ["BUCKETS_S", "FAILURE_REASONS", "OUTCOMES", "PHASES", "ROW_BUCKETS", "Histogram", "Stats"]

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


class Histogram:
    """Counts per bucket (the last one is +Inf) and the sum, in the unit of its bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


class Stats:
    """Everything measured of one version. Durations are nanoseconds, charged per request as Triton does:

    each request of a batch is charged the whole batch's compute time; `batch_*` are per execution.
    """

    def __init__(self) -> None:
        self.request_ns = {outcome: Histogram(_BUCKETS_NS) for outcome in OUTCOMES}
        self.queue_ns = {outcome: Histogram(_BUCKETS_NS) for outcome in OUTCOMES}
        self.compute_ns = {
            outcome: [Histogram(_BUCKETS_NS) for _ in PHASES] for outcome in (Outcome.SUCCESS, Outcome.FAILED)
        }
        self.batch_rows = Histogram(ROW_BUCKETS)
        self.flushes: dict[str, int] = {}
        self.failures = dict.fromkeys(FAILURE_REASONS, 0)
        self.batches: dict[int, list[int]] = {}
        """rows -> [executions, compute_input ns, compute_infer ns, compute_output ns]"""
        self.inferred_rows = 0
        self.executions = 0
        self.last_inference_ms = 0

    def answered(self, request_and_queue_ns: Iterable[tuple[int, int]], compute: tuple[int, int, int]) -> None:
        """Requests of one batch succeeded."""
        request, queue = self.request_ns[Outcome.SUCCESS], self.queue_ns[Outcome.SUCCESS]
        requests = 0
        for request_ns, queue_ns in request_and_queue_ns:
            request.observe(request_ns)
            queue.observe(queue_ns)
            requests += 1
        self.observe_compute(Outcome.SUCCESS, compute, requests)

    def observe_compute(self, outcome: Outcome, compute: tuple[int, int, int], requests: int = 1) -> None:
        """The three phases of the batch of so many requests: input, infer, output."""
        for histogram, spent_ns in zip(self.compute_ns[outcome], compute, strict=True):
            histogram.observe(spent_ns, requests)

    def ended(self, outcome: Outcome, request_ns: int, queue_ns: int | None, reason: str | None = None) -> None:
        """One request ended without outputs; `queue_ns` None where it never waited."""
        self.request_ns[outcome].observe(request_ns)
        if queue_ns is not None:
            self.queue_ns[outcome].observe(queue_ns)
        self.failures[reason or _REASON_OF[outcome]] += 1

    def executed(self, rows: int, reason: str, compute: tuple[int, int, int]) -> None:
        """One batch ran to its end."""
        self.batch_rows.observe(rows)
        self.flushes[reason] = self.flushes.get(reason, 0) + 1
        entry = self.batches.setdefault(rows, [0, 0, 0, 0])
        entry[0] += 1
        for index, spent_ns in enumerate(compute, start=1):
            entry[index] += spent_ns
        self.inferred_rows += rows
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
