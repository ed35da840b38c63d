"""What happens before what on a GPU, by vector clocks: races are found whether or not they strike.

Sources: CUDA Programming Guide, "Streams" (work of one stream runs in order, that of two in any) and "Events"; CUDA
Driver API, cuStreamWaitEvent (what is put into the stream later waits for the most recent record; one that was never
recorded counts as complete) and cuEventSynchronize.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Clock", "Place", "RuleBroken"]


class RuleBroken(AssertionError):
    """Something that CUDA or TensorRT do not allow, or whose outcome they do not define."""


class Clock:
    """How far each stream is known to have come: stream number -> ticks."""

    def __init__(self, ticks: dict[int, int] | None = None) -> None:
        self._ticks = dict(ticks or {})

    def copy(self) -> Clock:
        return Clock(self._ticks)

    def merge(self, other: Clock) -> None:
        for stream, tick in other._ticks.items():
            self._ticks[stream] = max(tick, self._ticks.get(stream, 0))

    def advance(self, stream: int) -> int:
        self._ticks[stream] = self._ticks.get(stream, 0) + 1
        return self._ticks[stream]

    def knows(self, stream: int, tick: int) -> bool:
        """Whether that has happened before."""
        return self._ticks.get(stream, 0) >= tick


class Place:
    """Memory, or anything that two must not use at once, and who has last written and read it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._written: tuple[int, int, str] | None = None
        self._read: dict[int, tuple[int, str]] = {}

    def read(self, clock: Clock, stream: int, tick: int, what: str) -> None:
        """RuleBroken where it may still be being written."""
        self._require_after([self._written] if self._written else [], clock, what)
        self._read[stream] = tick, what

    def write(self, clock: Clock, stream: int, tick: int, what: str) -> None:
        """RuleBroken where it may still be being written or read."""
        before = [self._written] if self._written else []
        self._require_after([*before, *((s, t, by) for s, (t, by) in self._read.items())], clock, what)
        self._written, self._read = (stream, tick, what), {}

    def _require_after(self, before: Iterable[tuple[int, int, str]], clock: Clock, what: str) -> None:
        for stream, tick, by in before:
            if not clock.knows(stream, tick):
                raise RuleBroken(f"{what} uses {self.name} while {by} may not have ended: nothing orders them")
