"""What came of the requests of one run: every latency, and failures by what they were. Flat, since it grows per answer.

Everything is kept, so percentiles are exact; a request takes 8 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

__all__ = ["Failure", "Increment", "Seen"]

_INT64 = "q"


class Failure(msgspec.Struct):
    """So many requests failed alike; `said` is what the first of them was told."""

    count: int
    said: str


class Increment(msgspec.Struct):
    """What is new since the last one: int64 nanoseconds, in bytes of this machine, and all failures so far."""

    latencies: bytes
    lates: bytes
    failures: dict[str, Failure]
    rows: int
    in_time: int
    in_time_rows: int


class Seen:
    """`latencies_ns` of right answers in the order of their arrival, `lates_ns` of dues (open loop).

    `failures` by status, or by the words for what is none. `in_time` of the answers came within the run's window, with
    `in_time_rows` rows.
    """

    def __init__(self) -> None:
        self.latencies_ns, self.lates_ns = array(_INT64), array(_INT64)
        self.failures: dict[str, Failure] = {}
        self.rows = self.in_time = self.in_time_rows = 0
        self._told = self._told_lates = 0

    def failed(self, what: str, said: str = "", count: int = 1) -> None:
        """`what` is a status, or words of this program; `said` of somebody else."""
        known = self.failures.setdefault(what, Failure(0, said))
        known.count += count

    @property
    def failed_requests(self) -> int:
        return sum(failure.count for failure in self.failures.values())

    def increment(self) -> Increment:
        """What came since the last call."""
        latencies, lates = self.latencies_ns[self._told :], self.lates_ns[self._told_lates :]
        self._told, self._told_lates = len(self.latencies_ns), len(self.lates_ns)
        return Increment(
            latencies.tobytes(), lates.tobytes(), self.failures, self.rows, self.in_time, self.in_time_rows
        )

    def add(self, increment: Increment) -> None:
        """The other side of `increment`."""
        self.latencies_ns.frombytes(increment.latencies)
        self.lates_ns.frombytes(increment.lates)
        self.failures = increment.failures
        self.rows, self.in_time, self.in_time_rows = increment.rows, increment.in_time, increment.in_time_rows

    def first_failure(self) -> str:
        """What the failure that is most frequent was, in words; empty where there is none."""
        words: Sequence[tuple[str, Failure]] = sorted(self.failures.items(), key=lambda item: -item[1].count)
        return next((f"{what}: {failure.said}" if failure.said else what for what, failure in words), "")
