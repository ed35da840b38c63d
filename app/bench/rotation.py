"""Requests that were made before the run, in rotation."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Rotation"]


class Rotation:
    """Whole requests, all with the same number of rows. A `Source` of the driver."""

    def __init__(self, requests: Sequence[bytes], rows: int) -> None:
        self._requests = [(request,) for request in requests]
        self.rows: Sequence[int] = (rows,)

    def pieces(self, index: int) -> tuple[bytes]:
        return self._requests[index % len(self._requests)]
