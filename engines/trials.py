"""Assignments of precision that were tried, what each was measured to be, and how many more may be tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from engines.errors import ModelRefused

__all__ = ["Evaluate", "Ledger", "Outcome", "Spent", "Trial", "choose", "holds", "pareto_front", "ranked"]

_UNUSABLE = math.inf


class Outcome(NamedTuple):
    """What one assignment was measured to be; a number that is not finite makes it unusable.

    `loss` is in the metric's own unit, lower is better. `cost` is what the objective minimizes: microseconds for
    latency, seconds a row for throughput, bytes for size.
    """

    loss: float
    cost: float

    @property
    def is_usable(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.cost)


class Trial(NamedTuple):
    """An assignment and its outcome: the layers in `kept` stay in float, all others take the low precision."""

    kept: frozenset[str]
    outcome: Outcome


Evaluate = Callable[[frozenset[str]], Outcome]


class Spent(Exception):
    """No further assignment may be measured. Never leaves a search."""


class Ledger:
    """Measures every assignment at most once, and none after `trials` of them or `time_limit_s` seconds.

    Raises ValueError for limits that allow nothing.
    """

    def __init__(self, evaluate: Evaluate, *, trials: int, time_limit_s: float, clock: Callable[[], float]) -> None:
        if trials < 1:
            raise ValueError(f"trials is {trials}; a search needs 1 or more")
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s is {time_limit_s}; a search needs more than 0 seconds")
        self._evaluate, self._clock = evaluate, clock
        self._most, self._until_s = trials, clock() + time_limit_s
        self.tried: dict[frozenset[str], Outcome] = {}

    @property
    def left(self) -> int:
        """How many more assignments may be measured, the time aside."""
        return max(0, self._most - len(self.tried))

    def measure(self, kept: frozenset[str]) -> Outcome:
        """What `kept` was or is now measured to be. Raises Spent where it is new and a limit is reached."""
        if kept not in self.tried and (self.left == 0 or self._clock() >= self._until_s):
            raise Spent
        return self.measure_anyway(kept)

    def measure_anyway(self, kept: frozenset[str]) -> Outcome:
        """The same without a look at the limits. An assignment that is refused is unusable."""
        if kept not in self.tried:
            try:
                self.tried[kept] = self._evaluate(kept)
            except ModelRefused:
                self.tried[kept] = Outcome(_UNUSABLE, _UNUSABLE)
        return self.tried[kept]

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Inside, only this share of what is left of both limits may be used; what wants more ends the block."""
        most, until_s = self._most, self._until_s
        now_s = self._clock()
        self._most = len(self.tried) + math.ceil(share * self.left)
        self._until_s = now_s + share * max(0.0, until_s - now_s)
        try:
            with suppress(Spent):
                yield
        finally:
            self._most, self._until_s = most, until_s

    def trials(self) -> list[Trial]:
        """All that was tried, in the order in which it was."""
        return [Trial(kept, outcome) for kept, outcome in self.tried.items()]


def holds(outcome: Outcome, budget: float) -> bool:
    """Whether the outcome is usable and loses no more than `budget`."""
    return outcome.is_usable and outcome.loss <= budget


def choose(trials: Iterable[Trial], budget: float) -> Trial | None:
    """The cheapest trial that loses no more than `budget`, or None. Of equally cheap ones the one that loses least,
    then the one that keeps fewest layers in float, then the first.
    """
    good = [trial for trial in trials if holds(trial.outcome, budget)]
    return min(good, key=lambda trial: (trial.outcome.cost, trial.outcome.loss, len(trial.kept)), default=None)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (loss, cost) points that no other dominates, the cheapest first.

    A point dominates another where it is no worse in both numbers and better in one; so equal points are on the front
    together. Points with a number that is not finite are on no front.
    """
    usable = [i for i, point in enumerate(points) if all(math.isfinite(number) for number in point)]
    front: list[int] = []
    for i in sorted(usable, key=lambda i: (points[i][1], points[i][0])):
        if not front or points[i][0] < points[front[-1]][0] or tuple(points[i]) == tuple(points[front[-1]]):
            front.append(i)
    return front


def ranked(points: Sequence[tuple[float, float]], noise: float) -> list[int]:
    """Indices of all (loss, cost) points, the best first: that which loses least of those that cost no more than
    `noise` times as much as the cheapest, then in the same way of what is left. Of equal losses the cheaper one.
    """
    left, order = list(range(len(points))), []
    while left:
        most = noise * min(points[i][1] for i in left)
        order.append(min((i for i in left if points[i][1] <= most), key=lambda i: points[i]))
        left.remove(order[-1])
    return order
