"""The queue by itself: order, counts, and deadlines that cost nothing once their tickets are gone."""

from __future__ import annotations

import gc
import weakref

import pytest

from app.serving.errors import Cancelled, QueueFull
from app.serving.limits import QueueOptions, QueuePolicy
from app.serving.queue import Queue
from app.serving.ticket import Ticket
from tests.support.fakes import HeldLoop, ticket


class Tickets:
    """Makes tickets of given values; the value tells them apart."""

    def __init__(self) -> None:
        self.loop = HeldLoop()

    def __call__(self, value: float, rows: int = 1, level: int = 0, timeout_ns: int = 0, width: int = 1) -> Ticket:
        return ticket(self.loop, value, rows, level=level, timeout_ns=timeout_ns, width=width)[0]


def values(tickets: list[Ticket]) -> list[float]:
    return [float(one.inputs["x"][0, 0]) for one in tickets]


@pytest.fixture
def make() -> Tickets:
    return Tickets()


def taken(queue: Queue) -> list[Ticket]:
    """Everything, in order."""
    return [ticket for group in queue.groups() for ticket in queue.take(group, queue.requests)]


def test_counts_follow_every_push_removal_and_take(make: Tickets) -> None:
    queue = Queue(QueueOptions())
    first, second, third = make(1, rows=3), make(2, rows=2), make(3)
    for one in (first, second, third):
        queue.push(one)
    assert (queue.requests, queue.rows) == (3, 6)

    queue.remove(second)
    assert (queue.requests, queue.rows) == (2, 4)
    assert queue.take(queue.groups()[0], 2) == [first, third]
    assert (queue.requests, queue.rows) == (0, 0)
    assert queue.groups() == []


def test_priority_then_arrival_is_the_order_within_a_group(make: Tickets) -> None:
    queue = Queue(QueueOptions(levels=3, default_level=3))
    for value, level in [(1, 3), (2, 1), (3, 2), (4, 1)]:
        queue.push(make(value, level=level))
    assert values(list(queue.groups()[0])) == [2, 4, 3, 1]


def test_the_group_whose_first_ticket_waits_longest_at_the_highest_level_comes_first(make: Tickets) -> None:
    queue = Queue(QueueOptions(levels=2, default_level=2))
    queue.push(make(1, level=2, width=1))
    queue.push(make(2, level=2, width=2))
    queue.push(make(3, level=1, width=3))
    queue.push(make(4, level=2, width=1))
    assert [group.key for group in queue.groups()] == [((3,),), ((1,),), ((2,),)]
    assert values(taken(queue)) == [3, 1, 4, 2]
    assert (queue.requests, queue.rows) == (0, 0)


def test_rows_are_bounded_over_all_levels_and_shapes(make: Tickets) -> None:
    queue = Queue(QueueOptions(max_rows=4, levels=2, default_level=2))
    queue.push(make(1, rows=2, level=1))
    queue.push(make(2, rows=2, level=2, width=2))
    with pytest.raises(QueueFull):
        queue.push(make(3, level=1))
    assert (queue.requests, queue.rows) == (2, 4)


def test_a_ticket_is_counted_with_all_its_rows(make: Tickets) -> None:
    queue = Queue(QueueOptions(max_rows=4))
    queue.push(make(1, rows=2))
    with pytest.raises(QueueFull):
        queue.push(make(2, rows=3))
    queue.push(make(3, rows=2))


def test_an_empty_queue_takes_a_ticket_beyond_its_whole_limit(make: Tickets) -> None:
    queue = Queue(QueueOptions(max_rows=4))
    queue.push(make(1, rows=9))
    with pytest.raises(QueueFull):
        queue.push(make(2))


def test_zero_bounds_nothing(make: Tickets) -> None:
    queue = Queue(QueueOptions(max_rows=0))
    for value in range(3000):
        queue.push(make(value))
    assert queue.requests == 3000


def test_a_level_counts_only_its_own_requests_and_frees_them(make: Tickets) -> None:
    queue = Queue(QueueOptions(levels=2, default_level=2, policy=QueuePolicy(max_queue_requests=1)))
    first = make(1, level=1)
    queue.push(first)
    queue.push(make(2, level=2))
    with pytest.raises(QueueFull):
        queue.push(make(3, level=1))
    queue.remove(first)
    queue.push(make(4, level=1))


def test_deadlines_expire_in_their_order_and_at_their_time(make: Tickets) -> None:
    queue = Queue(QueueOptions())
    for value, timeout_ns in [(1, 30), (2, 10), (3, 20), (4, 0)]:
        queue.push(make(value, timeout_ns=timeout_ns))
    start_ns = make.loop.now_ns
    assert queue.next_deadline_ns() == start_ns + 10
    assert queue.expire(start_ns + 9) == []
    assert values(queue.expire(start_ns + 20)) == [2, 3]
    assert queue.next_deadline_ns() == start_ns + 30
    assert values(queue.expire(start_ns + 10_000)) == [1]
    assert queue.next_deadline_ns() is None
    assert values(taken(queue)) == [4]


def test_an_expired_ticket_of_a_delay_level_stands_behind_the_live_ones_of_its_level(make: Tickets) -> None:
    queue = Queue(QueueOptions(levels=2, default_level=2, policy=QueuePolicy(delay_expired=True)))
    for value, level, timeout_ns in [(1, 1, 10), (2, 1, 0), (3, 2, 0)]:
        queue.push(make(value, level=level, timeout_ns=timeout_ns))
    assert queue.expire(make.loop.now_ns + 10) == []
    queue.push(make(4, level=1))
    assert queue.next_deadline_ns() is None, "it has no deadline any more"
    assert values(list(queue.groups()[0])) == [2, 4, 1, 3]
    assert (queue.requests, queue.rows) == (4, 4)


def test_the_deadline_of_one_that_left_wakes_nobody(make: Tickets) -> None:
    queue = Queue(QueueOptions())
    leaving, staying = make(1, timeout_ns=10), make(2, timeout_ns=20)
    queue.push(leaving)
    queue.push(staying)
    queue.remove(leaving)
    leaving.settle(Cancelled())
    assert queue.next_deadline_ns() == staying.deadline_ns
    assert queue.expire(make.loop.now_ns + 15) == []


def test_an_expired_ticket_of_a_delay_level_counts_until_it_leaves(make: Tickets) -> None:
    queue = Queue(QueueOptions(policy=QueuePolicy(max_queue_requests=1, delay_expired=True)))
    delayed = make(1, timeout_ns=10)
    queue.push(delayed)
    queue.expire(make.loop.now_ns + 10)
    with pytest.raises(QueueFull):
        queue.push(make(2))
    queue.remove(delayed)
    queue.push(make(3))


def test_a_cancel_storm_leaves_no_ticket_behind(make: Tickets) -> None:
    queue = Queue(QueueOptions())
    keeper = make(0, timeout_ns=50)
    queue.push(keeper)
    gone = []
    for value in range(2000):
        one = make(value, timeout_ns=10_000_000)
        queue.push(one)
        queue.remove(one)
        one.settle(Cancelled())
        gone.append(weakref.ref(one.sink))
        del one
    gc.collect()
    assert sum(ref() is not None for ref in gone) <= 100, "the heap of deadlines keeps the dead"
    assert queue.expire(make.loop.now_ns + 50) == [keeper]


def test_a_ticket_leaves_without_its_queue_being_walked(make: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def count(one: Ticket, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    monkeypatch.setattr(Ticket, "__eq__", count, raising=False)
    monkeypatch.setattr(Ticket, "__hash__", object.__hash__, raising=False)
    queue = Queue(QueueOptions(max_rows=0))
    waiting = [make(value, timeout_ns=1000) for value in range(1000)]
    for one in waiting:
        queue.push(one)
    for one in waiting[500:]:
        queue.remove(one)
    assert compared < 500, "removal compares tickets: it searches"
    assert queue.requests == 500


def test_taking_a_wide_batch_sorts_out_deadlines_once(make: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(QueueOptions())
    for value in range(1000):
        queue.push(make(value, timeout_ns=1000))
    looked_at = 0

    def look(one: Ticket) -> bool:
        nonlocal looked_at
        looked_at += 1
        return True

    monkeypatch.setattr("app.serving.queue._waits", look)
    assert len(queue.take(queue.groups()[0], 1000)) == 1000
    assert looked_at <= 1000
