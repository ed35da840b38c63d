"""When requests are sent: at given instants, whatever becomes of earlier ones, or as earlier ones are answered.

Pure: reads no clock. A plan hands out the instant from which a request's latency counts. In an open loop that is when
it was due: a server that falls behind is not given the time that it makes its clients wait (no coordinated omission).
"""

from __future__ import annotations

import math
from array import array
from typing import Literal, Protocol

import numpy as np

__all__ = ["Arrivals", "Closed", "Open", "Plan", "constant_s", "poisson_s"]

Arrivals = Literal["poisson", "constant"]


class Plan(Protocol):
    """`taken` requests were handed out. `window_end_ns`: answers after it are no throughput; None = all are."""

    taken: int
    window_end_ns: int | None

    def begin(self, now_ns: int) -> None: ...
    def take(self, now_ns: int) -> int | None:
        """The instant from which the next request's latency counts; None where none is to be sent now."""

    def is_over(self, now_ns: int) -> bool:
        """Whether none will be sent any more."""

    def next_due_ns(self) -> int | None:
        """When to look again, where that is known."""

    def stop(self) -> None:
        """No more requests."""


class Closed:
    """Whoever is free sends at once, for some seconds or a number of requests."""

    def __init__(self, seconds: float | None = None, requests: int | None = None) -> None:
        self._duration_ns = None if seconds is None else round(seconds * 1e9)
        self._left = math.inf if requests is None else requests
        self.taken = 0
        self.window_end_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """From now on."""
        if self._duration_ns is not None:
            self.window_end_ns = now_ns + self._duration_ns

    def take(self, now_ns: int) -> int | None:
        """Now, as long as the run lasts."""
        if self.is_over(now_ns):
            return None
        self._left -= 1
        self.taken += 1
        return now_ns

    def is_over(self, now_ns: int) -> bool:
        return self._left <= 0 or (self.window_end_ns is not None and now_ns >= self.window_end_ns)

    def next_due_ns(self) -> int | None:
        return None

    def stop(self) -> None:
        self._left = 0


class Open:
    """Request i is due at `dues_ns[i]` after the beginning (ascending). What is not sent by `patience_ns` after the
    last of them never is.
    """

    def __init__(self, dues_ns: array[int], window_ns: int | None, patience_ns: int) -> None:
        self._dues_ns, self._window_ns, self._patience_ns = dues_ns, window_ns, patience_ns
        self._begun_ns, self._end, self._noticed = 0, len(dues_ns), 0
        self.taken = 0
        self.window_end_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """Dues count from now."""
        self._begun_ns = now_ns
        if self._window_ns is not None:
            self.window_end_ns = now_ns + self._window_ns

    def take(self, now_ns: int) -> int | None:
        """When the next request was due, if it was."""
        if self.is_over(now_ns):
            return None
        due_ns = self._begun_ns + self._dues_ns[self.taken]
        if due_ns > now_ns:
            return None
        self.taken += 1
        return due_ns

    def notice(self, now_ns: int) -> list[int]:
        """How late, in nanoseconds, this call is for each request that became due since the last one."""
        since_ns, late = now_ns - self._begun_ns, []
        while self._noticed < self._end and self._dues_ns[self._noticed] <= since_ns:
            late.append(since_ns - self._dues_ns[self._noticed])
            self._noticed += 1
        return late

    def backlog(self, now_ns: int) -> int:
        """How many are due and not sent; as far as `notice` has looked."""
        return max(0, self._noticed - self.taken)

    def is_over(self, now_ns: int) -> bool:
        return self.taken >= self._end or now_ns > self._begun_ns + self._dues_ns[self._end - 1] + self._patience_ns

    def next_due_ns(self) -> int | None:
        """Of the first that was not noticed."""
        return self._begun_ns + self._dues_ns[self._noticed] if self._noticed < self._end else None

    @property
    def unsent(self) -> int:
        """Requests that are not sent, of those that the run was to have."""
        return self._end - self.taken

    def stop(self) -> None:
        self._end = self.taken


def poisson_s(rate_per_s: float, seconds: float | None, requests: int | None, seed: int) -> np.ndarray:
    """Seconds from the beginning, float64 [n], ascending: gaps are exponential, as of callers who know not each other.

    All that are due within `seconds`, or the first `requests`.
    """
    rng = np.random.default_rng(seed)
    if seconds is None:
        return np.cumsum(rng.exponential(1 / rate_per_s, requests))
    expected = rate_per_s * seconds
    gaps = rng.exponential(1 / rate_per_s, math.ceil(expected + 10 * math.sqrt(expected) + 10))
    due_s: np.ndarray = np.cumsum(gaps)
    return due_s[due_s < seconds]


def constant_s(rate_per_s: float, seconds: float) -> np.ndarray:
    """Seconds from the beginning, float64 [n]: one every 1 / rate."""
    return np.arange(math.ceil(rate_per_s * seconds - 1e-9)) / rate_per_s
