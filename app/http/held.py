"""How many bytes of request bodies are held at once: a bound for all calls together. Threads may take from it, too."""

from __future__ import annotations

import threading

from app.serving.errors import Cancelled, QueueFull
from app.tally import Alone, Tally

__all__ = ["Hold", "Room"]


class Room:
    """`held_bytes` of `limit_bytes` are taken: by bodies that arrive, wait their turn, or wait for an answer.

    `tally` knows what other processes of the server have taken of the same.
    """

    def __init__(self, limit_bytes: int, tally: Tally | None = None) -> None:
        self.limit_bytes, self._tally = limit_bytes, tally or Alone()
        self._lock = threading.Lock()  # bodies are decompressed, and counted as they grow, in threads

    @property
    def held_bytes(self) -> int:
        return self._tally.own + self._tally.others

    def _change(self, hold: Hold, size_bytes: int) -> None:
        with self._lock:
            if hold.released:
                raise Cancelled("nobody waits for this request any more")
            held_bytes = self.held_bytes + size_bytes
            if held_bytes > self.limit_bytes and size_bytes > 0 and not self._has_room(hold, size_bytes):
                raise self._full()
            self._tally.own += size_bytes
            hold.size_bytes += size_bytes

    def _empty(self, hold: Hold) -> None:
        with self._lock:
            self._tally.own -= hold.size_bytes
            hold.size_bytes, hold.released = 0, True

    def _has_room(self, hold: Hold, size_bytes: int) -> bool:
        alone = self.held_bytes == hold.size_bytes  # one alone may always be as large as max_body_bytes
        return alone or self.held_bytes + size_bytes <= self.limit_bytes

    def _full(self) -> QueueFull:
        return QueueFull(
            f"Exceeds maximum queue size: the server holds {self.held_bytes} bytes of requests; "
            "see setting max_held_bytes"
        )


class Hold:
    """One call's share. Whoever makes it releases it, on every way out."""

    __slots__ = ("_room", "released", "size_bytes")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0
        self.released = False

    def check(self, size_bytes: int) -> None:
        """Raise QueueFull where there is no room for so many more; take nothing."""
        if not self._room._has_room(self, size_bytes):
            raise self._room._full()

    def take(self, size_bytes: int) -> None:
        """Count so many more. QueueFull where there is no room, Cancelled where the call has ended meanwhile."""
        self._room._change(self, size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """Count so many less."""
        self._room._change(self, -size_bytes)

    def release(self) -> None:
        """Count nothing any more, nor ever again."""
        self._room._empty(self)
