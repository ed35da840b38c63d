"""The queue of one model version: priority levels, groups of one shape, deadlines. Answers nothing by itself."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator

from app.serving.errors import QueueFull
from app.serving.limits import QueueOptions
from app.serving.ticket import ShapeKey, State, Ticket

__all__ = ["Group", "Queue"]


class Group:
    """Waiting tickets of one shape. Iterates in priority, then arrival order; the stood-back ones end each level."""

    def __init__(self, key: ShapeKey) -> None:
        self.key = key
        self._lanes: dict[tuple[int, bool], OrderedDict[Ticket, int]] = {}

    def __iter__(self) -> Iterator[Ticket]:
        for lane in sorted(self._lanes):
            yield from self._lanes[lane]

    def head(self) -> tuple[int, bool, int]:
        """Order of the group among others: (level, stood back, arrival number) of its first ticket."""
        lane = min(self._lanes)
        return (*lane, next(iter(self._lanes[lane].values())))

    def add(self, ticket: Ticket, number: int) -> None:
        self._lanes.setdefault((ticket.level, ticket.stood_back), OrderedDict())[ticket] = number

    def remove(self, ticket: Ticket) -> int:
        lane = (ticket.level, ticket.stood_back)
        number = self._lanes[lane].pop(ticket)
        if not self._lanes[lane]:
            del self._lanes[lane]
        return number

    def __bool__(self) -> bool:
        return bool(self._lanes)


class Queue:
    """Every operation costs O(log n) at most; `rows` and `requests` are what waits now."""

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._groups: dict[ShapeKey, Group] = {}
        self._per_level: dict[int, int] = {}
        self._deadlines: list[tuple[int, int, Ticket]] = []
        self._numbers = itertools.count()
        self.rows = self.requests = 0

    def push(self, ticket: Ticket) -> None:
        """Append; QueueFull where the model's rows or the level's requests are at their limit.

        A ticket with more rows than the whole limit is still taken by an empty queue, or it could never run.
        """
        limit = self._options.policy_of(ticket.level).max_queue_requests
        level_count = self._per_level.get(ticket.level, 0)
        if (limit and level_count >= limit) or (
            self._options.max_rows and self.rows and self.rows + ticket.rows > self._options.max_rows
        ):
            raise QueueFull("Exceeds maximum queue size")
        number = next(self._numbers)
        self._group(ticket.shape_key).add(ticket, number)
        self._per_level[ticket.level] = level_count + 1
        self.rows += ticket.rows
        self.requests += 1
        if ticket.deadline_ns:
            heapq.heappush(self._deadlines, (ticket.deadline_ns, number, ticket))

    def _group(self, key: ShapeKey) -> Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key)
        return group

    def groups(self) -> list[Group]:
        """Groups that have tickets, the one whose first ticket has waited longest at the highest level first."""
        if len(self._groups) == 1:
            return list(self._groups.values())
        return sorted(self._groups.values(), key=Group.head)

    def take(self, group: Group, count: int) -> list[Ticket]:
        """Remove the first `count` tickets of a group."""
        taken = list(itertools.islice(group, count))
        for ticket in taken:
            self._unlink(ticket)
        self._purge()
        return taken

    def remove(self, ticket: Ticket) -> None:
        """Take a waiting ticket out, wherever it stands."""
        self._unlink(ticket)
        self._purge()

    def _unlink(self, ticket: Ticket) -> None:
        group = self._groups[ticket.shape_key]
        group.remove(ticket)
        if not group:
            del self._groups[ticket.shape_key]
        self._per_level[ticket.level] -= 1
        if not self._per_level[ticket.level]:
            del self._per_level[ticket.level]  # levels come and go with their tickets
        self.rows -= ticket.rows
        self.requests -= 1

    def _purge(self) -> None:
        """Once per removal, not per ticket: until they are launched, tickets just taken still count as waiting."""
        if len(self._deadlines) > 2 * self.requests + 64:
            self._deadlines = [entry for entry in self._deadlines if _waits(entry[2])]
            heapq.heapify(self._deadlines)

    def expire(self, now_ns: int) -> list[Ticket]:
        """Take out every ticket whose deadline has passed; those of a DELAY level are moved back instead."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, ticket = heapq.heappop(self._deadlines)
            if not _waits(ticket):
                continue
            if self._options.policy_of(ticket.level).delay_expired:
                group = self._groups[ticket.shape_key]
                number = group.remove(ticket)
                ticket.stood_back = True
                group.add(ticket, number)
            else:
                self.remove(ticket)
                expired.append(ticket)
        return expired

    def next_deadline_ns(self) -> int | None:
        """The earliest deadline of a waiting ticket that would still be dropped."""
        while self._deadlines and not _waits(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None


def _waits(ticket: Ticket) -> bool:
    return ticket.state is State.QUEUED and not ticket.stood_back
