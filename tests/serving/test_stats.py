"""Histograms and counters: which bucket, which label, whose time."""

from __future__ import annotations

import random

import pytest

from app.serving.errors import QueueFull
from app.serving.limits import Limits, ModelOptions, QueueOptions
from app.serving.stats import BUCKETS_S, OUTCOMES, ROW_BUCKETS, Histogram, Stats, summed
from app.serving.ticket import Outcome
from tests.support.fakes import MS, Bench


@pytest.mark.parametrize(("value", "bucket"), [(0, 0), (10, 0), (11, 1), (20, 1), (30, 2), (31, 3), (10**18, 3)])
def test_a_bound_belongs_to_its_own_bucket(value: int, bucket: int) -> None:
    histogram = Histogram((10, 20, 30))
    histogram.observe(value)
    assert histogram.counts == [int(index == bucket) for index in range(4)]
    assert (histogram.count, histogram.total) == (1, value)


def test_buckets_reach_from_below_a_millisecond_to_ten_seconds() -> None:
    assert BUCKETS_S[0] == 0.0001
    assert BUCKETS_S[-1] == 10.0
    assert list(BUCKETS_S) == sorted(BUCKETS_S)
    histogram = Stats().request_ns[Outcome.SUCCESS]
    histogram.observe(100_000)
    histogram.observe(100_001)
    assert histogram.counts[:2] == [1, 1]
    assert list(ROW_BUCKETS) == sorted(ROW_BUCKETS)


@pytest.mark.parametrize(
    ("outcome", "reason", "label"),
    [
        (Outcome.REJECTED, None, "REJECTED"),
        (Outcome.REJECTED, "OTHER", "OTHER"),
        (Outcome.EXPIRED, None, "REJECTED"),
        (Outcome.CANCELLED, None, "CANCELED"),
        (Outcome.FAILED, None, "BACKEND"),
    ],
)
def test_every_failure_has_tritons_reason(outcome: Outcome, reason: str | None, label: str) -> None:
    stats = Stats()
    stats.ended(outcome, 5, 3, reason)
    assert stats.failures == {**dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0), label: 1}
    assert stats.request_ns[outcome].total == 5
    assert stats.queue_ns[outcome].total == 3


def test_a_request_that_never_waited_has_no_queue_time() -> None:
    stats = Stats()
    stats.ended(Outcome.REJECTED, 5, None)
    assert stats.queue_ns[Outcome.REJECTED].count == 0


def timed_bench() -> Bench:
    """Two requests of 3 and 1 rows that wait 10 ms, then run for 4 ms, behind a batch of one row."""
    bench = Bench(ModelOptions(Limits(max_batch_rows=8)))
    bench.send(1)
    bench.send(3)
    bench.send(1)
    bench.advance_ms(10)
    bench.finish()
    bench.advance_ms(4)
    bench.finish()
    return bench


def test_each_request_is_charged_its_wait_and_the_whole_compute_time_of_its_batch() -> None:
    stats = timed_bench().stats
    assert stats.request_ns["success"].count == 3
    assert stats.request_ns["success"].total == (10 + 14 + 14) * MS
    assert stats.queue_ns["success"].total == (0 + 10 + 10) * MS
    assert [phase.total for phase in stats.compute_ns[Outcome.SUCCESS]] == [0, (10 + 4 + 4) * MS, 0]


def test_batches_are_charged_once_for_each_execution() -> None:
    stats = timed_bench().stats
    assert stats.batches == {1: [1, 0, 10 * MS, 0], 4: [1, 0, 4 * MS, 0]}
    assert (stats.executions, stats.inferred_rows) == (2, 5)
    assert stats.batch_rows.counts[:3] == [1, 0, 1]
    assert stats.flushes == {"idle": 2}
    assert stats.last_inference_ms > 0


def test_a_failed_batch_is_no_execution_and_its_time_is_seen() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=8)), width=1)
    bench.send(2)
    bench.advance_ms(6)
    bench.finish(RuntimeError("broken"))
    stats = bench.stats
    assert (stats.executions, stats.inferred_rows, stats.batches) == (0, 0, {})
    assert stats.failures["BACKEND"] == 1
    assert stats.request_ns["failed"].total == 6 * MS
    assert stats.queue_ns["failed"].total == 0
    assert stats.compute_ns[Outcome.FAILED][1].total == 6 * MS


def test_one_that_leaves_has_waited_until_its_launch_or_until_it_left() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=1)))
    running, waiting = bench.send(1), bench.send(1)
    bench.advance_ms(3)
    running.cancel()
    waiting.cancel()
    assert bench.stats.queue_ns["cancelled"].total == 3 * MS
    assert bench.stats.request_ns["cancelled"].total == 6 * MS


def test_every_request_ends_in_exactly_one_outcome() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=2), QueueOptions(max_rows=4)), width=1)
    bench.send(2)
    bench.send(1).cancel()
    bench.send(1, timeout_ms=1)
    bench.advance_ms(1)
    bench.send(2)
    bench.send(2)
    with pytest.raises(QueueFull):
        bench.send(2)
    bench.finish()
    bench.finish(RuntimeError("broken"))
    bench.finish()
    counts = {outcome.value: bench.stats.request_ns[outcome].count for outcome in OUTCOMES}
    assert counts == {"success": 2, "rejected": 1, "expired": 1, "cancelled": 1, "failed": 1}


BOUNDS_NS = [round(bound * 1e9) + more for bound in BUCKETS_S for more in (0, 1)]


def test_what_is_counted_at_once_is_what_each_histogram_counts_alone() -> None:
    rng = random.Random(3)
    fast, slow = Stats(), Stats()
    for _ in range(500):
        spread = rng.choice([10, 10**5, 10**7, 2 * 10**10])
        whole = [rng.choice([rng.randrange(spread), *BOUNDS_NS]) for _ in range(rng.randrange(40))]
        waited = [rng.randrange(spread) for _ in range(rng.randrange(40))]
        handed = [rng.randrange(spread) for _ in waited]
        input_ns, infer_ns = rng.randrange(10**6), rng.randrange(10**9)
        fast.answered(list(whole), list(waited), list(handed), (input_ns, infer_ns))
        for request_ns in whole:
            slow.request_ns[Outcome.SUCCESS].observe(request_ns)
        for queue_ns in waited:
            slow.queue_ns[Outcome.SUCCESS].observe(queue_ns)
        for output_ns in handed:
            slow.observe_compute(Outcome.SUCCESS, (input_ns, infer_ns, output_ns))
    assert fast.cells.tolist() == slow.cells.tolist()


def test_the_counts_of_several_processes_add_up() -> None:
    mine, theirs, shared = Stats(), Stats(), memoryview(bytearray(8 * Stats.CELLS)).cast("q")
    for stats in (mine, theirs, Stats(shared)):
        stats.answered([1000], [10], [3], (1, 2))
        stats.ended(Outcome.REJECTED, 7, None)
    mine.executed(4, "full", (1, 2, 3))
    total = summed(mine, [theirs.cells, shared])
    assert (total.request_ns[Outcome.SUCCESS].count, total.request_ns[Outcome.SUCCESS].total) == (3, 3000)
    assert total.failures == {"REJECTED": 3, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    assert (total.executions, total.flushes, total.batches) == (1, mine.flushes, mine.batches)
    assert mine.request_ns[Outcome.SUCCESS].count == 1
    assert summed(mine, []) is mine


def test_a_request_ends_with_its_own_answer_not_with_its_batch() -> None:
    bench = Bench(ModelOptions(Limits(max_batch_rows=8)))

    def takes_a_millisecond() -> None:
        bench.loop.now_ns += MS

    for sent in [bench.send(1) for _ in range(4)]:  # the first runs alone, the others after it
        sent.then(takes_a_millisecond)
    bench.finish()
    bench.finish()
    assert bench.stats.executions == 2
    assert bench.stats.request_ns["success"].total == (1 + 2 + 3 + 4) * MS
    assert [phase.total for phase in bench.stats.compute_ns[Outcome.SUCCESS]] == [0, 0, (1 + 1 + 2 + 3) * MS]
    assert {rows: entry[3] for rows, entry in bench.stats.batches.items()} == {1: MS, 3: 3 * MS}
