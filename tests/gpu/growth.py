"""What a process and its device hold, and by how much that may grow: a leak of each change of shapes exceeds it."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import NamedTuple, Protocol

import psutil

__all__ = ["Held", "grown", "held"]

_LIBC = ctypes.CDLL(None)
_BLOCKS = 0.1
"""Python objects a change: a leak has one at least, and what else the process does has none that grows with them."""
_RESIDENT_BYTES = 512
"""A change, outside of Python: 15 MB of 30,000, above what allocators keep by the way. One module of kernels, the leak
to be feared most, takes some hundred times that.
"""
_DEVICE_BYTES = 512
"""A change: the smallest that CUDA allocates. Of 30,000 changes it is 15 MB."""


class Device(Protocol):
    """What is asked of a `Machine` or a `Place`."""

    @property
    def modules(self) -> list[str]: ...

    def used_bytes(self) -> int: ...


class Held(NamedTuple):
    """`blocks` are Python's allocations, of objects whether its collector knows them or not."""

    blocks: int
    resident_bytes: int
    device_bytes: int
    modules: int


def held(machine: Device) -> Held:
    """Now, once all that is garbage is gone, and what was freed is given back: else it would hide as much growth."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):  # of glibc
        _LIBC.malloc_trim(0)
    resident = psutil.Process().memory_info().rss
    return Held(sys.getallocatedblocks(), resident, machine.used_bytes(), len(machine.modules))


def grown(before: Held, after: Held, changes: int) -> list[str]:
    """What has grown by more than it may in so many changes."""
    most = Held(int(_BLOCKS * changes), _RESIDENT_BYTES * changes, _DEVICE_BYTES * changes, 0)
    growth = Held(*(last - first for first, last in zip(before, after, strict=True)))
    return [
        f"{name}: {count} more; at most {limit} of {changes} changes"
        for name, count, limit in zip(Held._fields, growth, most, strict=True)
        if count > limit
    ]
