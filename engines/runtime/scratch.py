"""Scratch memory of one GPU that several contexts compute in, one after another: for where each its own does not fit.

Whoever computes takes its turn in the order of streams: one thread at a time puts its work there, and waits for the GPU
only where TensorRT itself does, which computes some sizes and compiles some kernels then. It moves when a context joins
that needs more: TensorRT is told its place again, and graphs that were captured before are void.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from engines.errors import OutOfMemory
from engines.runtime.driver import Driver, give_back

__all__ = ["Scratch", "ScratchPlace"]


class ScratchPlace(NamedTuple):
    """Where it is now, and how large."""

    address: int
    size_bytes: int


class Scratch:
    """Used by any thread that has the device's context current. As large as the one that needs the most wants it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._users = 0
        self._event = 0
        self._place = ScratchPlace(0, 0)

    def join(self, size_bytes: int) -> None:
        """Raises OutOfMemory; then all is as it was. Call `leave` once nothing of the context is under way."""
        with self._lock:
            if not self._users:
                self._event = self._driver.event()
            try:
                self._require(size_bytes)
            except BaseException:
                if not self._users:
                    self._drop()
                raise
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._drop()

    @contextmanager
    def turn(self, stream: int, size_bytes: int) -> Iterator[ScratchPlace]:
        """What is put into the stream meanwhile runs behind the turns before, and before those that come. OutOfMemory
        where it had to go, and the GPU has been filled since.
        """
        with self._lock:
            self._require(size_bytes)
            self._driver.wait(stream, self._event)
            try:
                yield self._place
            finally:  # also of what failed some may be in the stream
                self._driver.record(self._event, stream)

    def _require(self, size_bytes: int) -> None:
        """The larger one is made beside what is there, as long as both fit: then nothing is lost where it does not."""
        before = self._place
        if size_bytes <= before.size_bytes:
            return
        try:
            self._allocate(size_bytes)
        except OutOfMemory:
            if not before.size_bytes:
                raise
            self._free(before)
            self._allocate_or(before.size_bytes, size_bytes)
        else:
            self._free(before)

    def _allocate_or(self, before_bytes: int, size_bytes: int) -> None:
        try:
            self._allocate(size_bytes)
        except OutOfMemory:
            self._allocate(before_bytes)
            raise

    def _allocate(self, size_bytes: int) -> None:
        self._place = ScratchPlace(self._driver.allocate(size_bytes), size_bytes)

    def _free(self, place: ScratchPlace) -> None:
        """This waits for the device, so for all turns."""
        if place == self._place:
            self._place = ScratchPlace(0, 0)
        if place.size_bytes:
            give_back(self._driver.free, place.address)

    def _drop(self) -> None:
        self._free(self._place)
        give_back(self._driver.close_event, self._event)
