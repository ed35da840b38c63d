"""Launches that are on their way to a GPU and back, each of which ends once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engines.runtime.session import Done

__all__ = ["PATIENCE", "Flight", "Flights"]

PATIENCE = 10
"""How many times as long as for the GPU is waited for what may be something else."""


class Flight:
    """One launch."""

    def __init__(self, done: Done) -> None:
        self._done = [done]

    def end(self, error: BaseException | None) -> bool:
        """Tell who launched it: whoever is first does, and whether it was."""
        try:
            done = self._done.pop()
        except IndexError:
            return False
        done(error)
        return True


class Flights:
    """Those of an instance. Thread-safe."""

    def __init__(self) -> None:
        self._under_way: set[Flight] = set()
        self._on_gpu: set[Flight] = set()
        self._elsewhere: set[Flight] = set()
        self._over: BaseException | None = None
        self._looks = 0.0

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

    @contextmanager
    def alone(self) -> Iterator[Flight]:
        """One that the caller waits for. Raises what all have been ended with."""
        flight = self.begin(lambda error: None)
        if flight is None:
            raise self._over or AssertionError("it was not begun")
        try:
            yield flight
        finally:
            self.end(flight, None)

    @contextmanager
    def elsewhere(self, flight: Flight) -> Iterator[None]:
        """Something else may be waited for meanwhile, a compiler or a library that reads a plan: a look is a part of
        one.
        """
        self._elsewhere.add(flight)
        self._on_gpu.discard(flight)
        try:
            yield
        finally:
            self._on_gpu.add(flight)
            self._elsewhere.discard(flight)

    def end(self, flight: Flight, error: BaseException | None) -> bool:
        """Whether it had not ended before."""
        self._under_way.discard(flight)
        self._on_gpu.discard(flight)
        self._looks = 0
        return flight.end(error)

    def look(self) -> float:
        """How many times in a row, this one among them, something was on the GPU and nothing has ended."""
        if self._on_gpu:
            self._looks += 1
        elif self._elsewhere:
            self._looks += 1 / PATIENCE
        else:
            self._looks = 0
        return self._looks

    def end_all(self, error: BaseException) -> None:
        """Those that are under way, and whatever is launched from now on."""
        self._over = error
        for flight in tuple(self._under_way):
            self.end(flight, error)
