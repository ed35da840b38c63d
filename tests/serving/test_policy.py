"""`decide`: every rule of Triton's batcher, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.limits import Limits
from app.serving.policy import Dispatch, Wait, decide


@dataclass
class Waiting:
    rows: int
    enqueued_ns: int = 0


DELAYED = Limits(max_batch_rows=8, preferred_rows=(2, 6), max_queue_delay_ns=10)
AT_ONCE = Limits(max_batch_rows=8, preferred_rows=(4, 6))
PLAIN = Limits(max_batch_rows=8)
PLAIN_DELAYED = Limits(max_batch_rows=8, max_queue_delay_ns=10)
SINGLE = Limits(max_batch_rows=0, max_queue_delay_ns=10)

TABLE = {
    "nothing waits": (DELAYED, [], 0, Wait(None)),
    "a preferred size goes at once": (DELAYED, [2], 0, Dispatch(1, 2, "preferred")),
    "the largest preferred prefix is taken": (DELAYED, [1] * 7, 0, Dispatch(6, 6, "preferred")),
    "a preferred prefix leaves the rest behind": (DELAYED, [1, 1, 1], 0, Dispatch(2, 2, "preferred")),
    "below every preferred size it waits": (DELAYED, [1], 0, Wait(10)),
    "between preferred sizes it waits": (DELAYED, [3], 9, Wait(10)),
    "above the largest preferred size it goes": (DELAYED, [7], 0, Dispatch(1, 7, "full")),
    "what would be lifted above all preferred sizes goes": (DELAYED, [3, 4], 0, Dispatch(1, 3, "preferred")),
    "no later ticket undoes a preferred prefix": (DELAYED, [2, 3, 3], 0, Dispatch(1, 2, "preferred")),
    "after the delay everything goes": (DELAYED, [1, 1, 1], 10, Dispatch(3, 3, "delay")),
    "after the delay it may exceed the preferred sizes": (DELAYED, [3, 4], 10, Dispatch(2, 7, "full")),
    "a batch that cannot grow goes": (DELAYED, [5, 4], 0, Dispatch(1, 5, "full")),
    "after the delay a batch ends at the limit": (DELAYED, [1, 1, 7], 10, Dispatch(2, 2, "full")),
    "exactly the limit is full": (DELAYED, [3, 5], 10, Dispatch(2, 8, "full")),
    "a ticket is never split": (DELAYED, [9, 1], 0, Dispatch(1, 9, "full")),
    "without delay a preferred prefix goes first": (AT_ONCE, [1] * 5, 5, Dispatch(4, 4, "preferred")),
    "without delay a lone ticket never waits": (AT_ONCE, [1], 0, Dispatch(1, 1, "idle")),
    "without delay all that is there goes": (AT_ONCE, [1, 1, 1], 0, Dispatch(3, 3, "idle")),
    "without preferred sizes the limit is the one": (PLAIN_DELAYED, [4, 4], 0, Dispatch(2, 8, "full")),
    "without preferred sizes less than the limit waits": (PLAIN_DELAYED, [4, 3], 0, Wait(10)),
    "without preferred sizes and delay all goes": (PLAIN, [4, 3], 0, Dispatch(2, 7, "idle")),
    "unbatched: one at a time, whatever its rows": (SINGLE, [40, 1], 0, Dispatch(1, 40, "unbatched")),
    "unbatched: nothing waits": (SINGLE, [], 0, Wait(None)),
}


@pytest.mark.parametrize(("limits", "rows", "now_ns", "verdict"), TABLE.values(), ids=list(TABLE))
def test_the_rules_of_triton(limits: Limits, rows: list[int], now_ns: int, verdict: Dispatch | Wait) -> None:
    assert decide([Waiting(count) for count in rows], limits, now_ns) == verdict


def test_the_delay_counts_from_the_oldest_ticket_wherever_it_stands() -> None:
    waiting = [Waiting(1, enqueued_ns=7), Waiting(2, enqueued_ns=3)]

    assert decide(waiting, DELAYED, 12) == Wait(13)
    assert decide(waiting, DELAYED, 13) == Dispatch(2, 3, "delay")


def test_the_age_of_a_ticket_that_does_not_fit_does_not_count() -> None:
    waiting = [Waiting(1, enqueued_ns=9), Waiting(1, enqueued_ns=9), Waiting(7, enqueued_ns=0)]

    assert decide(waiting, DELAYED, 10) == Dispatch(2, 2, "preferred")


LIMITS = st.builds(
    Limits,
    max_batch_rows=st.integers(0, 9),
    preferred_rows=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    max_queue_delay_ns=st.sampled_from([0, 5, 20]),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.builds(Waiting, st.integers(1, 9), st.integers(0, 30)), max_size=8), LIMITS, st.integers(30, 60))
def test_a_verdict_is_a_prefix_within_the_limit_and_waiting_ends(waiting: list, limits: Limits, now_ns: int) -> None:
    verdict = decide(waiting, limits, now_ns)

    if isinstance(verdict, Wait):
        if not waiting:
            assert verdict == Wait(None)
            return
        assert verdict.until_ns is not None
        assert verdict.until_ns > now_ns, "a time that has passed would spin the loop"
        verdict = decide(waiting, limits, verdict.until_ns)
    assert isinstance(verdict, Dispatch)
    assert verdict.count >= 1
    assert verdict.rows == sum(ticket.rows for ticket in waiting[: verdict.count])
    assert verdict.count == 1 or verdict.rows <= limits.max_batch_rows
