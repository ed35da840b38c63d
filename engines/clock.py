"""The time that a build takes: its stages, told as they pass, and limits that are looked at between steps."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "Progress", "TimeLimit"]

Progress = Callable[[str, float], None]
"""Told a stage, and how much of it is done: 0 when it begins, at most 1."""


class Clock:
    """Tells the stages of a build as they begin and go on, and keeps how long each took."""

    def __init__(self, tell: Progress) -> None:
        self._tell, self._stage = tell, ""
        self._began_s = self._started_s = time.monotonic()
        self.stages_s: dict[str, float] = {}

    def begin(self, stage: str) -> None:
        now_s = time.monotonic()
        if self._stage:
            spent_s = (
                self.stages_s.get(self._stage, 0.0) + now_s - self._began_s
            )  # engines pass the same stages in turn
            self.stages_s[self._stage] = round(spent_s, 3)
        self._stage, self._began_s = stage, now_s
        self._tell(stage, 0.0)

    def advance(self, share: float) -> None:
        """So much of the stage that began last is done."""
        self._tell(self._stage, share)

    @property
    def total_s(self) -> float:
        return round(time.monotonic() - self._started_s, 2)


class TimeLimit:
    """So many seconds from now on, for steps that cannot be interrupted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Negative where it is over."""
        return self._ends_s - time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.left_s <= 0
