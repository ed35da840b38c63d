"""When requests are sent, with a clock that the test holds."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from app.bench.arrivals import Closed, Open, constant_s, poisson_s

MS = 1_000_000


def test_poisson_gaps_are_exponential_and_seeded() -> None:
    due_s = poisson_s(500, 20, None, seed=4)
    assert np.array_equal(due_s, poisson_s(500, 20, None, seed=4))
    assert not np.array_equal(due_s[:50], poisson_s(500, 20, None, seed=5)[:50])
    assert abs(len(due_s) - 10_000) < 500  # five standard deviations
    gaps = np.diff(due_s)
    assert gaps.min() >= 0
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05), "as an exponential's"
    assert due_s[-1] < 20


def test_a_number_of_requests_is_that_many_at_the_same_rate() -> None:
    due_s = poisson_s(500, None, 10_000, seed=4)
    assert len(due_s) == 10_000
    assert due_s[-1] == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(("rate", "seconds", "count"), [(10, 1, 10), (3, 1, 3), (1000, 0.5, 500), (0.5, 1, 1)])
def test_constant_gaps(rate: float, seconds: float, count: int) -> None:
    due_s = constant_s(rate, seconds)
    assert due_s.tolist() == [number / rate for number in range(count)]
    assert due_s[-1] < seconds


def test_a_closed_loop_sends_whenever_somebody_is_free_until_its_end() -> None:
    plan = Closed(seconds=0.01)
    plan.begin(100 * MS)
    assert [plan.take(now) for now in (100 * MS, 100 * MS, 109 * MS)] == [100 * MS, 100 * MS, 109 * MS]
    assert (plan.taken, plan.window_end_ns, plan.is_over(109 * MS)) == (3, 110 * MS, False)
    assert plan.is_over(110 * MS)
    assert plan.take(110 * MS) is None


def test_a_closed_loop_of_a_number_of_requests() -> None:
    plan = Closed(requests=2)
    plan.begin(0)
    assert [plan.take(now) for now in (5, 6, 7)] == [5, 6, None]
    assert plan.is_over(7)
    assert plan.window_end_ns is None


def opened(*due_ms: int) -> Open:
    plan = Open(array("q", [ms * MS for ms in due_ms]), window_ns=50 * MS, patience_ns=10 * MS)
    plan.begin(1000 * MS)
    return plan


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    plan = opened(0, 10, 20)
    assert plan.take(1000 * MS) == 1000 * MS
    assert plan.take(1009 * MS) is None, "it is not due"
    assert plan.take(1027 * MS) == 1010 * MS, "nobody was free for it"
    assert plan.take(1027 * MS) == 1020 * MS
    assert plan.is_over(1027 * MS)
    assert plan.unsent == 0


def test_it_notices_each_due_once_and_how_late() -> None:
    plan = opened(0, 10, 20)
    assert plan.next_due_ns() == 1000 * MS
    assert plan.notice(1003 * MS) == [3 * MS]
    assert plan.notice(1003 * MS) == []
    assert (plan.backlog(1003 * MS), plan.next_due_ns()) == (1, 1010 * MS)
    assert plan.notice(1021 * MS) == [11 * MS, 1 * MS]
    assert (plan.backlog(1021 * MS), plan.next_due_ns()) == (3, None)
    plan.take(1021 * MS)
    assert plan.backlog(1021 * MS) == 2


def test_its_patience_ends() -> None:
    plan = opened(0, 10, 20)
    plan.take(1000 * MS)
    assert not plan.is_over(1030 * MS)
    assert plan.is_over(1031 * MS)
    assert plan.take(1031 * MS) is None
    assert plan.unsent == 2


@pytest.mark.parametrize("plan", [Closed(seconds=9), Closed(requests=9), opened(0, 10, 20)])
def test_what_is_stopped_sends_no_more(plan: Closed | Open) -> None:
    plan.begin(0)
    assert plan.take(0) == 0
    plan.stop()
    assert plan.is_over(1)
    assert plan.take(1000 * MS) is None
