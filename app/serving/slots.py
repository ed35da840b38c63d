"""Which of an endpoint's slots the next batch gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from engines.runtime.session import Slot

__all__ = ["FreeSlots"]


class FreeSlots:
    """Those on which nothing runs.

    Slots that compute by themselves (a CPU's) are taken as they were given back, the last first: its memory is warm. Of
    a GPU's, which have `lanes`, the next is where least runs: on the GPU, then on the instance, whose batches run one
    behind the other; among equals the one that has waited longest. A GPU that is lost comes last: it fails at once
    whatever is sent there.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._free = list(slots)
        self._in_lanes = any(slot.lanes for slot in slots)
        self._busy: Counter[Hashable] = Counter()
        self._lost: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> Slot:
        """IndexError where none is free."""
        if not self._in_lanes:
            return self._free.pop()
        slot = self._free.pop(min(range(len(self._free)), key=self._rank, default=-1))
        self._busy.update(slot.lanes)
        return slot

    def give(self, slot: Slot, *, is_lost: bool = False) -> None:
        """Back, once nothing of its batch is needed any more. `is_lost`: its GPU is."""
        self._free.append(slot)
        if self._in_lanes:
            self._busy.subtract(slot.lanes)
        if is_lost:
            self._lost.update(slot.lanes[:1])

    def _rank(self, at: int) -> tuple[object, ...]:
        lanes = self._free[at].lanes
        return (*(lane in self._lost for lane in lanes[:1]), *(self._busy[lane] for lane in lanes))
