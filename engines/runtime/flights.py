"""Launches that are on their way, and who looks whether one of them takes too long.

Nothing of CUDA says that a kernel hangs: who waits for its event waits for ever (CUDA Driver API, cuEventSynchronize).
So time tells.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engines.runtime.session import Done

__all__ = ["Flight", "Flights", "Watch"]

_LONGEST_S = 1.0
"""Between two looks."""


class Flight:
    """One launch."""

    def __init__(self, done: Done) -> None:
        self._done = [done]
        self._begun_s = time.monotonic()

    def is_late(self, limit_s: float) -> bool:
        """Whether it was launched longer ago."""
        return time.monotonic() - self._begun_s > limit_s

    def end(self, error: BaseException | None) -> None:
        """Tell who launched it: whoever is first does."""
        try:
            done = self._done.pop()
        except IndexError:
            return
        done(error)


class Flights:
    """Those of an instance. Thread-safe."""

    def __init__(self) -> None:
        self._under_way: set[Flight] = set()
        self._over: BaseException | None = None

    def begin(self, done: Done) -> Flight | None:
        """None once all have been ended: then this one is, too."""
        flight = Flight(done)
        self._under_way.add(flight)
        if self._over is None:
            return flight
        self.end(flight, self._over)
        return None

    def end(self, flight: Flight, error: BaseException | None) -> None:
        self._under_way.discard(flight)
        flight.end(error)

    def are_late(self, limit_s: float) -> bool:
        """Whether one was launched longer ago."""
        return any(flight.is_late(limit_s) for flight in tuple(self._under_way))

    def end_all(self, error: BaseException) -> None:
        """Those that are under way, and whatever is launched from now on."""
        self._over = error
        for flight in tuple(self._under_way):
            self.end(flight, error)


class Watch:
    """Calls `look` a few times within each `limit_s`, from a thread of its own, until it is closed."""

    def __init__(self, look: Callable[[], None], limit_s: float) -> None:
        self._look, self._every_s = look, min(_LONGEST_S, limit_s / 4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._look()
