"""Decide when a batch leaves the queue. Pure: reads no clock, holds no lock, knows no HTTP.

The rules are those of Triton's dynamic batcher (dynamic_batch_scheduler.cc), with one difference: requests of another
shape wait in their own group instead of cutting the batch short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from app.serving.limits import Limits

__all__ = ["Dispatch", "Wait", "Waiting", "decide"]


class Waiting(Protocol):
    """What the decision reads of a ticket."""

    @property
    def rows(self) -> int: ...

    @property
    def enqueued_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the first `count` waiting tickets, `rows` rows in all. `reason` labels the flush metric."""

    count: int
    rows: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to send before `until_ns` unless something arrives; None = nothing waits."""

    until_ns: int | None


def decide(waiting: Iterable[Waiting], limits: Limits, now_ns: int) -> Dispatch | Wait:
    """Look at tickets of one shape, in priority then arrival order.

    Walk and add rows until the next ticket would exceed `max_batch_rows`. Remember the last prefix whose rows are a
    preferred size or, where none was met, the one that the next ticket would lift above all preferred sizes: while
    the oldest ticket is younger than the delay, that prefix goes at once. Otherwise all that was walked goes if it
    cannot grow (full, or at least the largest preferred size) or the delay has passed; else wait until it has. A
    ticket is never split.
    """
    if limits.max_batch_rows == 0:
        first = next(iter(waiting), None)
        return Wait(None) if first is None else Dispatch(1, first.rows, "unbatched")
    preferred = limits.preferred_rows or (limits.max_batch_rows,)
    count = rows = 0
    best: Dispatch | None = None
    oldest_ns = now_ns
    full = False
    for ticket in waiting:
        if rows + ticket.rows > limits.max_batch_rows and count:
            full = True
            break
        if best is None and count and rows + ticket.rows > max(preferred):
            best = Dispatch(count, rows, "preferred")
        count, rows = count + 1, rows + ticket.rows
        oldest_ns = min(oldest_ns, ticket.enqueued_ns)
        if rows in preferred:
            best = Dispatch(count, rows, "preferred")
        if rows >= limits.max_batch_rows:
            full = True
            break
    if count == 0:
        return Wait(None)
    delay_ns = limits.max_queue_delay_ns
    waited = now_ns - oldest_ns >= delay_ns
    if best is not None and (not waited or delay_ns == 0):
        return Dispatch(best.count, best.rows, "full" if best.rows >= limits.max_batch_rows else best.reason)
    if full or rows >= max(preferred):
        return Dispatch(count, rows, "full")
    if waited:
        return Dispatch(count, rows, "delay" if delay_ns else "idle")
    return Wait(oldest_ns + delay_ns)
