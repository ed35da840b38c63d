"""Runs in turn, so that what else the machine does falls on all alike, and what is said of them. Starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Measured", "Rounds", "Runner", "Void", "interleaved", "turn"]

Measured = Mapping[str, float]
Runner = Callable[[], Measured]


class Void(Exception):
    """A run with a failure in it: it says nothing of speed."""


@dataclass
class Rounds:
    """`rounds`: what each runner measured, by its name. `void`: why a runner has no say, by its name."""

    rounds: list[dict[str, Measured]] = field(default_factory=list)
    void: dict[str, str] = field(default_factory=dict)

    def median(self, name: str, key: str) -> float | None:
        """Over all rounds; None where the runner is void or was not there."""
        found = self._of(name, key)
        return statistics.median(found) if found else None

    def ratio(self, key: str, name: str, other: str) -> float | None:
        """The median of the ratios within each round, `name` to `other`; None where either has no say."""
        pairs = list(zip(self._of(name, key), self._of(other, key), strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def difference(self, key: str, name: str, other: str) -> float | None:
        """The same of differences."""
        pairs = list(zip(self._of(name, key), self._of(other, key), strict=False))
        return statistics.median(a - b for a, b in pairs) if pairs else None

    def _of(self, name: str, key: str) -> list[float]:
        """In the order of rounds: a runner that is not void was in all of them, or in none."""
        if name in self.void:
            return []
        return [found[name][key] for found in self.rounds if name in found]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"rounds": self.rounds, "void": self.void}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Rounds:
        """Back from JSON."""
        return cls(list(stored["rounds"]), dict(stored["void"]))


def turn(names: Sequence[str], number: int) -> list[str]:
    """Every other round goes backwards: who always came first would always find what the last one left behind."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def interleaved(runners: Mapping[str, Runner], rounds: int, absent: Mapping[str, str] | None = None) -> Rounds:
    """So many rounds of all. A runner whose run is void is not run again, and the others go on.

    `absent`: why others are not there at all.
    """
    found = Rounds(void=dict(absent or {}))
    for number in range(rounds):
        measured: dict[str, Measured] = {}
        for name in turn(list(runners), number):
            if name in found.void:
                continue
            try:
                measured[name] = runners[name]()
            except Void as reason:
                found.void[name] = str(reason)
        found.rounds.append(measured)
    return found
