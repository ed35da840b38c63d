"""The connections of a server process: how many there may be, and a look at each of them twice a second."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from app.tally import Alone, Tally

__all__ = ["Register"]

_SWEEP_S = 0.5


class _Connection(Protocol):
    def check_time(self, now_s: float) -> None:
        """Do what is due for a client that is late."""
        ...


class Register:
    """`limit` holds for those admitted in all processes together, which `tally` counts."""

    def __init__(self, limit: int, tally: Tally | None = None) -> None:
        self._limit, self._tally = limit, tally or Alone()
        self._open: set[_Connection] = set()
        self._admitted: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def enter(self, connection: _Connection) -> bool:
        """Whether there is room for one more. It is looked at until it leaves in either case."""
        self._open.add(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
        if len(self._admitted) + self._tally.others >= self._limit:
            return False
        self._admitted.add(connection)
        self._tally.own = len(self._admitted)
        return True

    def leave(self, connection: _Connection) -> None:
        self._open.discard(connection)
        self._admitted.discard(connection)
        self._tally.own = len(self._admitted)

    @property
    def is_flooded(self) -> bool:
        """Whether so many are open that were refused that they can get no time to read it."""
        return len(self._open) > 2 * self._limit + 16

    def _sweep(self) -> None:
        """Cheaper than a timer for each request."""
        self._sweeper = None
        now_s = time.monotonic()
        for connection in list(self._open):
            connection.check_time(now_s)
        if self._open:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
