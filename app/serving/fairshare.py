"""Deficit round robin in measured time: whose batch runs next. Pure; times are nanoseconds of device time."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["FairShare"]

Key = TypeVar("Key", bound=Hashable)


class FairShare(Generic[Key]):
    """Members take turns; each turn adds a quantum to its deficit, each batch is charged what it took.

    A member whose batches are long pays for them by passing turns, so every member that has work gets the same time
    (Shreedhar and Varghese 1995, with time instead of bytes and the charge corrected after the fact). Unused credit
    is lost when a member leaves; debt is forgiven by the time that passes while it is away.
    """

    def __init__(self, quantum_ns: int) -> None:
        self._quantum_ns = quantum_ns
        self._deficit_ns: dict[Key, int] = {}
        self._left_ns: dict[Key, int] = {}
        self._ring: list[Key] = []

    def enter(self, key: Key, now_ns: int) -> None:
        """`key` has work now."""
        if key in self._ring:
            return
        away_ns = now_ns - self._left_ns.pop(key, now_ns)
        self._deficit_ns[key] = min(0, self._deficit_ns.get(key, 0) + away_ns)
        self._ring.append(key)

    def leave(self, key: Key, now_ns: int) -> None:
        """`key` has no more work, neither waiting nor running."""
        if key in self._ring:
            self._ring.remove(key)
            self._left_ns[key] = now_ns

    def forget(self, key: Key) -> None:
        """`key` is gone for good."""
        if key in self._ring:
            self._ring.remove(key)
        self._left_ns.pop(key, None)
        self._deficit_ns.pop(key, None)

    def charge(self, key: Key, spent_ns: int) -> None:
        """Take time (or give it back, if negative)."""
        if key in self._deficit_ns:
            self._deficit_ns[key] -= spent_ns

    def next(self, able: Collection[Key]) -> Key:
        """Who of `able` (not empty, all entered) has the next turn. Changes nothing."""
        if len(able) == 1:  # mostly
            return next(iter(able))
        return self._first(*self._turns(able))

    def take(self, able: Collection[Key]) -> Key:
        """Give `next` its turn, to run one batch."""
        turns, credit_ns = self._turns(able)
        chosen = self._first(turns, credit_ns)
        for key in turns:
            self._deficit_ns[key] += credit_ns
        self._ring.remove(chosen)
        self._ring.append(chosen)
        return chosen

    def _first(self, turns: list[Key], credit_ns: int) -> Key:
        return next(key for key in turns if self._deficit_ns[key] + credit_ns > 0)

    def _turns(self, able: Collection[Key]) -> tuple[list[Key], int]:
        """Those of `able` in the order of their turns, and what all of them get before one may run."""
        turns = [key for key in self._ring if key in able]
        most_ns = max(self._deficit_ns[key] for key in turns)
        rounds = 0 if most_ns > 0 else -most_ns // self._quantum_ns + 1
        return turns, rounds * self._quantum_ns

    def deficit_ns(self, key: Key) -> int:
        return self._deficit_ns[key]
