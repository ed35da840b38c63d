"""Launches that are on their way, and who looks whether a GPU goes on with them.

Nothing of CUDA says that a kernel hangs: who waits for its event waits for ever (CUDA Driver API, cuEventSynchronize).
So time tells, counted in looks: a process that was stopped for a while has not waited in that time.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from engines.errors import DeviceLost
from engines.runtime.session import Done

__all__ = ["Flight", "Flights", "Watch", "Watched"]

log = logging.getLogger(__name__)
_LONGEST_S = 1.0
"""Between two looks."""


class Flight:
    """One launch."""

    def __init__(self, done: Done) -> None:
        self._done = [done]

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
        self._on_gpu: set[Flight] = set()
        self._over: BaseException | None = None
        self._looks = 0

    def begin(self, done: Done) -> Flight | None:
        """None once all have been ended: then this one is, too."""
        flight = Flight(done)
        self._under_way.add(flight)
        if self._over is None:
            return flight
        self.end(flight, self._over)
        return None

    def start(self, flight: Flight) -> None:
        """It is in the streams: the GPU alone is waited for."""
        self._on_gpu.add(flight)

    def end(self, flight: Flight, error: BaseException | None) -> None:
        self._under_way.discard(flight)
        self._on_gpu.discard(flight)
        self._looks = 0
        flight.end(error)

    def look(self) -> int:
        """How many times in a row, this one among them, something was on the GPU and nothing has ended."""
        self._looks = self._looks + 1 if self._on_gpu else 0
        return self._looks

    def end_all(self, error: BaseException) -> None:
        """Those that are under way, and whatever is launched from now on."""
        self._over = error
        for flight in tuple(self._under_way):
            self.end(flight, error)


class Watched(Protocol):
    """An instance on a GPU."""

    def look(self) -> int:
        """How many times in a row it was found with a batch on the GPU that does not end."""
        ...

    def lose(self, error: DeviceLost) -> None:
        """Its batches end with this, whatever of them goes on there."""
        ...


class Watch:
    """Of a GPU: all instances on it are lost once a batch of one of them has been there for longer than `hang_s`, while
    no other of that instance has ended. A thread looks as long as there are any.
    """

    def __init__(self, hang_s: float) -> None:
        self._hang_s, self._every_s = hang_s, min(_LONGEST_S, hang_s / 4)
        self._lock = threading.Lock()
        self._instances: set[Watched] = set()
        self._looks = False
        self._hung: DeviceLost | None = None

    def join(self, instance: Watched) -> None:
        """Raises DeviceLost where the GPU hangs."""
        with self._lock:
            if self._hung is not None:
                raise self._hung
            self._instances.add(instance)
            if not self._looks:
                self._looks = True
                threading.Thread(target=self._look_all, name="gpu-watch", daemon=True).start()

    def leave(self, instance: Watched) -> None:
        with self._lock:
            self._instances.discard(instance)

    def _look_all(self) -> None:
        while True:
            time.sleep(self._every_s)
            with self._lock:
                found = tuple(self._instances)
                if not found:
                    self._looks = False
                    return
                if max([one.look() for one in found]) * self._every_s > self._hang_s:
                    break
        self._lose()

    def _lose(self) -> None:
        hung = DeviceLost(f"a batch has not ended within {self._hang_s:g} s: the GPU hangs, or a kernel on it does")
        with self._lock:
            self._hung = hung
            found = tuple(self._instances)
        for one in found:
            try:
                one.lose(hung)
            except Exception:  # of one: the others are told all the same
                log.exception("an instance on a GPU that hangs could not be ended")
