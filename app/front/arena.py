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

    Where no block of a size is left, a larger free one is split; where all are free, all begins anew. The pages of free
    blocks beyond _KEPT_BYTES are given back to the system.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.view = memoryview(mapping)
        self._end = 0
        self._free: dict[int, deque[int]] = {}
        self._bare: set[int] = set()  # offsets of free blocks whose pages have gone
        self._kept_bytes = 0
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> Block:
        """A block of at least so many bytes; ArenaFull where there is none."""
        bits = max(_SMALLEST_BITS, (size_bytes - 1).bit_length())
        size = 1 << bits
        free = self._free.get(bits)
        offset = self._pop(bits) if free else self._carved(size)
        if offset is None:
            offset = self._split(bits)
        self.taken_bytes += size
        return Block(offset, size)

    def give_back(self, block: Block) -> None:
        """A block of `take`, once."""
        self.taken_bytes -= block.size_bytes
        free = self._free.setdefault(block.size_bytes.bit_length() - 1, deque())
        if block.size_bytes >= _PAGE_BYTES and self._kept_bytes + block.size_bytes > _KEPT_BYTES:
            self._mapping.madvise(mmap.MADV_REMOVE, block.offset, block.size_bytes)
            self._bare.add(block.offset)
            free.appendleft(block.offset)  # those with pages are taken first
        else:
            self._kept_bytes += block.size_bytes
            free.append(block.offset)

    def clear(self) -> None:
        """Nothing is taken, and no page is kept."""
        self._mapping.madvise(mmap.MADV_REMOVE)
        self._end = self._kept_bytes = 0
        self._free.clear()
        self._bare.clear()

    def _pop(self, bits: int) -> int:
        offset = self._free[bits].pop()
        if offset in self._bare:
            self._bare.discard(offset)
        else:
            self._kept_bytes -= 1 << bits
        return offset

    def _carved(self, size: int) -> int | None:
        """From what was never taken."""
        alignment = min(size, _PAGE_BYTES)
        offset = -(-self._end // alignment) * alignment
        if offset + size > len(self.view):
            return None
        self._end = offset + size
        return offset

    def _split(self, bits: int) -> int:
        """The first part of the smallest free block that is larger; its other parts become free ones."""
        larger = min((size for size, free in self._free.items() if free and size > bits), default=None)
        if larger is not None:
            offset = self._pop(larger)
            for part in range(larger - 1, bits - 1, -1):
                self.taken_bytes += 1 << part
                self.give_back(Block(offset + (1 << part), 1 << part))
            return offset
        if self.taken_bytes:
            raise ArenaFull
        self.clear()
        offset = self._carved(1 << bits)  # type: ignore[assignment]
        if offset is None:
            raise ArenaFull
        return offset
