"""Percentiles, what the server counted, and what is said of them."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.messages import Ended
from app.bench.percentiles import latency_ms
from app.bench.report import level_document
from app.bench.seen import Failure, Seen
from app.bench.statistics import Counted, Share, between
from app.bench.sweep import Level, Measured
from app.bench.words import grouped


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300))
def test_percentiles_are_latencies_that_were_measured(latencies_ns: list[int]) -> None:
    found = latency_ms(latencies_ns)
    assert found is not None
    ordered = sorted(latencies_ns)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999)):
        rank = math.ceil(share * len(ordered) - 1e-9)
        assert found[name] == round(ordered[rank - 1] / 1e6, 4)
    assert (found["min"], found["max"]) == (round(ordered[0] / 1e6, 4), round(ordered[-1] / 1e6, 4))
    assert found["mean"] == pytest.approx(sum(ordered) / len(ordered) / 1e6, abs=1e-4)


def test_of_nothing_there_is_none() -> None:
    assert latency_ms([]) is None


BEFORE = Counted(
    {"success": 5, "queue": 1, "compute_input": 1, "compute_infer": 1, "compute_output": 1}, 3, Counter({1: 3, 8: 2})
)
MS = 1_000_000


def after(requests: int = 13, queue: int = 20 * MS + 1) -> Counted:
    ns = {
        "success": 100 * MS + 5, "queue": queue, "compute_input": 10 * MS + 1, "compute_infer": 40 * MS + 1,
        "compute_output": MS + 1,
    }  # fmt: skip
    return Counted(ns, requests, Counter({1: 3, 8: 4, 2: 1}))


def test_the_servers_share_is_the_difference_of_two_readings() -> None:
    share = between(BEFORE, after())
    assert share == Share(10, 10.0, 2.0, {"input": 1.0, "infer": 4.0, "output": 0.1}, {2: 1, 8: 2})
    assert share.mean_batch_rows == pytest.approx(18 / 3)


@pytest.mark.parametrize(
    ("before", "then"),
    [(None, after()), (BEFORE, None), (BEFORE, after(3)), (BEFORE, after(2)), (BEFORE, after(queue=0))],
)
def test_it_is_unknown_where_counters_are_missing_or_began_anew(before: Counted | None, then: Counted | None) -> None:
    assert between(before, then) is None


@pytest.mark.parametrize(
    ("batches", "groups"),
    [
        ({}, {}),
        ({4: 2, 1: 1}, {"1": 1, "4": 2}),
        (dict.fromkeys(range(1, 10), 1), {"1": 1, "2": 1, "3-4": 2, "5-8": 4, "9-16": 1}),
    ],
)
def test_many_sizes_are_grouped(batches: dict[int, int], groups: dict[str, int]) -> None:
    assert grouped(batches) == groups
    assert sum(groups.values()) == sum(batches.values())


def measured(
    level: Level, answers: int = 2000, late_ms: float = 0.1, cpu_s: float = 1.0, failures: int = 0, gone: bool = False,
    share: Share | None = None, connections: int = 4,
) -> Measured:  # fmt: skip
    seen = Seen()
    seen.latencies_ns.extend([2 * MS] * answers)
    seen.in_time = seen.in_time_rows = seen.rows = answers
    if level.rate is not None:
        seen.lates_ns.extend([round(late_ms * MS)] * answers)
    if failures:
        seen.failures["503"] = Failure(failures, "Exceeds maximum queue size")
    return Measured(level, seen, Ended(4.0, cpu_s, answers + failures, connections, gone), answers + failures, share)


def test_a_level_as_a_document() -> None:
    share = Share(2000, 1.8, 0.5, {"input": 0.1, "infer": 0.4, "output": 0.1}, {8: 250})
    document = level_document(measured(Level(concurrency=16), failures=10, share=share), 256)
    assert (document["requests"], document["answers"], document["requests_per_s"]) == (2010, 2000, 500.0)
    assert document["failures"] == {"503": {"count": 10, "first": "Exceeds maximum queue size"}}
    assert document["server"]["other_ms"] == pytest.approx(2.0 - 0.5 - 0.6)
    assert document["server"]["batch_rows"] == {"8": 250}
    assert document["driver"] == {
        "cpu_us_per_request": pytest.approx(497.5, abs=0.1), "cpu_share": 0.25, "connections": 4, "late_ms": None
    }  # fmt: skip
    assert document["notes"] == []


CLOSED, OPEN = Level(concurrency=16), Level(rate=500.0)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (measured(OPEN, late_ms=0.9), "the driver itself did not keep the rate: it was 0.90 ms late"),
        (measured(CLOSED, cpu_s=3.9), "the driver was busy 98 % of the time"),
        (measured(OPEN, connections=256), "all 256 connections were open"),
        (measured(CLOSED, gone=True), "the server took no connection any more"),
        (measured(CLOSED, answers=999), "of 999 answers (fewer than 1000) p99.9 is the slowest"),
        (measured(CLOSED, answers=99), "of 99 answers (fewer than 100) p99 is the slowest"),
        (measured(CLOSED, share=Share(2007, 1, 0, {}, {})), "the server answered 7 requests of others"),
    ],
)
def test_what_a_reader_has_to_know_is_said(one: Measured, said: str) -> None:
    notes = level_document(one, 256)["notes"]
    assert len(notes) == 1
    assert notes[0].startswith(f"{one.level}: ")
    assert said in notes[0]


def test_nothing_is_said_of_a_sound_level() -> None:
    for one in (measured(OPEN), measured(CLOSED), measured(OPEN, late_ms=0.4), measured(CLOSED, connections=256)):
        assert level_document(one, 256)["notes"] == []
