"""A client that keeps its connection sends the same head with every call: the same bytes need no parser again."""

from __future__ import annotations

from typing import NamedTuple

from app.http.cycle import FastCycle
from app.http.infer import Head

__all__ = ["KnownHead", "known_head"]

_MOST_BYTES = 2048
"""Of a head: each connection keeps one."""


class KnownHead(NamedTuple):
    """Of a call on HTTP/1.1 that keeps its connection and whose body has a length: what its bytes were parsed to.

    `whole_bytes`: of head and body.
    """

    head_bytes: bytes
    whole_bytes: int
    head: Head

    def body_in(self, segment: bytes) -> bytes | None:
        """The body where a segment that begins between two messages is one whole call with this head, else None."""
        if len(segment) != self.whole_bytes or not segment.startswith(self.head_bytes):
            return None
        return segment[len(self.head_bytes) :]


def known_head(segment: bytes, cycle: object) -> KnownHead | None:
    """Of a segment that began between two messages, where the parser found one that is complete, and its cycle.

    None where it is not certain that the segment is the head and the body of one call, with nothing before, between or
    behind them that the parser passes over: empty lines, or line ends that it puts up with.
    """
    if not (isinstance(cycle, FastCycle) and cycle.complete and cycle.keep_alive) or cycle.expects_continue:
        return None
    if not 0 < cycle.size == cycle.announced_bytes:
        return None
    end = len(segment) - cycle.size
    if not 0 < end <= _MOST_BYTES or segment.find(b"\r\n\r\n", 0, end) != end - 4:
        return None
    if not segment.startswith(b"POST ") or segment.count(b"\n", 0, end) != segment.count(b"\r\n", 0, end):
        return None
    return KnownHead(segment[:end], len(segment), cycle.head)
