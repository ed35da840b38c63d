"""A call at an instant, to some 50 us: the loops' own timers are rounded to whole milliseconds.

On Linux a timerfd, which the loop watches like a socket; elsewhere the loop's timer, and lateness is measured anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

__all__ = ["Alarm"]

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls `ring` on the running loop; a new instant replaces the one before. Instants are of `time.monotonic_ns`."""

    def __init__(self, ring: Callable[[], None], *, exact: bool = True) -> None:
        self._ring, self._loop = ring, asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = -1
        if exact and hasattr(self._libc, "timerfd_create"):
            self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._file >= 0:
            self._loop.add_reader(self._file, self._rang)

    def set(self, at_ns: int) -> None:
        """One in the past rings at once."""
        if self._file >= 0:
            instant = _Timespec(*divmod(max(1, at_ns), _NS))
            self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(_Itimerspec(_Timespec(), instant)), None)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0, at_ns - time.monotonic_ns()) / _NS, self._ring)

    def _rang(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was set anew meanwhile
            os.read(self._file, 8)
            self._ring()

    def close(self) -> None:
        """It does not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1
