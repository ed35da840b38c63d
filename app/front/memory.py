"""What the processes of one server share: anonymous memory, inherited by all that are forked, that no name leads to."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from app.serving.stats import Cells, Stats

__all__ = ["HELD_BYTES", "OPEN_CONNECTIONS", "VERSIONS", "ProcessCells", "SharedMemory", "SharedTally"]

VERSIONS = 4096
"""Versions whose counters have a place at once; of more, the front ends' part is not counted."""
OPEN_CONNECTIONS, HELD_BYTES, _UP = range(3)
"""The first of a process's cells."""
_OWN_CELLS = 8
_CELLS = _OWN_CELLS + VERSIONS * Stats.CELLS
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which the module does not name: only what is touched may cost memory


def _mapped(size_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE)


class ProcessCells:
    """One process's integers: it alone writes them while it runs, but for those of a version that gets its place."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    @property
    def up(self) -> bool:
        """Whether it takes connections."""
        return bool(self.cells[_UP])

    @up.setter
    def up(self, is_up: bool) -> None:
        self.cells[_UP] = int(is_up)

    def clear(self) -> None:
        """As of a process that does not run; counters of versions stay."""
        for index in range(_OWN_CELLS):
            self.cells[index] = 0

    def stats(self, place: int) -> Cells:
        """The counters of the version with this place, Stats.CELLS of them."""
        at = _OWN_CELLS + place * Stats.CELLS
        return self.cells[at : at + Stats.CELLS]


class SharedMemory:
    """`arenas` and `cells` by front end; the last of `cells` is the engine process's.

    An arena is four times as large as what may be held (blocks are powers of two, and free ones are not joined while
    any is taken), and takes memory only where it was written.
    """

    def __init__(self, front_ends: int, held_bytes: int) -> None:
        self.arenas = [_mapped(4 * held_bytes) for _ in range(front_ends)]
        self.cells = [ProcessCells(memoryview(_mapped(8 * _CELLS)).cast("q")) for _ in range(front_ends + 1)]

    def tally(self, process: int, cell: int) -> SharedTally:
        """One count of all processes, as the process with this index in `cells` keeps it."""
        return SharedTally(self.cells, process, cell)


class SharedTally:
    """An `app.tally.Tally` over the same cell of every process."""

    def __init__(self, processes: Sequence[ProcessCells], own: int, cell: int) -> None:
        self._own = processes[own].cells
        self._others = [process.cells for at, process in enumerate(processes) if at != own]
        self._cell = cell

    @property
    def own(self) -> int:
        return self._own[self._cell]

    @own.setter
    def own(self, count: int) -> None:
        self._own[self._cell] = count

    @property
    def others(self) -> int:
        return sum(cells[self._cell] for cells in self._others)
