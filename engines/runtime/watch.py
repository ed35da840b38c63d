"""Who looks whether a GPU goes on with what it has to do.

Nothing of CUDA says that a kernel hangs: who waits for its event waits for ever (CUDA Driver API, cuEventSynchronize).
So time tells, counted in looks: a process that was stopped for a while has not waited in that time.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from engines.errors import DeviceLost
from engines.runtime.driver import let_go
from engines.runtime.flights import Flight, Flights

__all__ = ["Watch", "Watched", "watched"]

log = logging.getLogger(__name__)
_LONGEST_S = 1.0
"""Between two looks."""
_Made = TypeVar("_Made")


class Watched(Protocol):
    """An instance on a GPU."""

    def look(self) -> float:
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

    @property
    def hangs(self) -> bool:
        return self._hung is not None

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


class _Call:
    """One that waits for a GPU, as `Watched`."""

    def __init__(self) -> None:
        self.flights = Flights()

    def look(self) -> float:
        return self.flights.look()

    def lose(self, error: DeviceLost) -> None:
        self.flights.end_all(error)


def watched(watch: Watch, call: Callable[[], _Made], drop: Callable[[_Made], None]) -> _Made:
    """What the call makes, or raises, in a thread of its own. DeviceLost where the GPU hangs in it; if it goes on one
    day, `drop` is given what it made.
    """
    waits, ended, found = _Call(), queue.SimpleQueue[BaseException | None](), list[_Made]()
    watch.join(waits)
    try:
        flight = waits.flights.begin(ended.put)
        if flight is not None:
            threading.Thread(target=_run, args=(waits, flight, call, found, drop), name="gpu-load", daemon=True).start()
        error = ended.get()
    finally:
        watch.leave(waits)
    if error is not None:
        raise error
    return found.pop()


def _run(
    waits: _Call, flight: Flight, call: Callable[[], _Made], found: list[_Made], drop: Callable[[_Made], None]
) -> None:
    error: BaseException | None = None
    try:
        with waits.flights.elsewhere(flight):
            found.append(call())
    except BaseException as raised:
        error = let_go(raised)
    if not waits.flights.end(flight, error) and found:  # nobody waits any more
        drop(found.pop())
