"""Blocks of one shared mapping: given and taken back by the front end whose arena it is."""

from __future__ import annotations

import mmap
from collections import deque
from typing import NamedTuple

__all__ = ["Arena", "ArenaFull", "Block"]

_SMALLEST_BITS = 9
_PAGE_BYTES = mmap.PAGESIZE
_KEPT_BYTES = 67_108_864
"""Of free blocks whose pages stay: to touch a new page costs more than to copy into it."""


class ArenaFull(Exception):
    """No block of that size is left."""


class Block(NamedTuple):
    """`offset` and `size_bytes` (a power of two) within the arena."""

    offset: int
    size_bytes: int


class Arena:
    """Blocks are powers of two, and each is reused for its own size: the last one freed first, since it is in a cache.

    The pages of free blocks beyond _KEPT_BYTES are given back to the system.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.view = memoryview(mapping)
        self._end = 0
        self._free: dict[int, deque[int]] = {}
        self._kept_bytes = 0
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> Block:
        """A block of at least so many bytes; ArenaFull where there is none."""
        bits = max(_SMALLEST_BITS, (size_bytes - 1).bit_length())
        size = 1 << bits
        free = self._free.get(bits)
        if free:
            offset = free.pop()
            self._kept_bytes = max(0, self._kept_bytes - size)
        else:
            alignment = min(size, _PAGE_BYTES)
            offset = -(-self._end // alignment) * alignment
            if offset + size > len(self.view):
                raise ArenaFull
            self._end = offset + size
        self.taken_bytes += size
        return Block(offset, size)

    def give_back(self, block: Block) -> None:
        """A block of `take`, once."""
        self.taken_bytes -= block.size_bytes
        free = self._free.setdefault(block.size_bytes.bit_length() - 1, deque())
        if block.size_bytes >= _PAGE_BYTES and self._kept_bytes + block.size_bytes > _KEPT_BYTES:
            self._mapping.madvise(mmap.MADV_REMOVE, block.offset, block.size_bytes)
            free.appendleft(block.offset)  # those with pages are taken first
        else:
            self._kept_bytes += block.size_bytes
            free.append(block.offset)
