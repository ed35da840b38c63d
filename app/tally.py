"""A count that several processes keep together: each writes its own part, and reads what the others have written."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Alone", "Tally"]


class Tally(Protocol):
    """`own` is this process's part, `others` the sum of all other parts; both are integers of at most 63 bits."""

    own: int

    @property
    def others(self) -> int: ...


class Alone:
    """Of a server that is one process."""

    own = 0
    others = 0
