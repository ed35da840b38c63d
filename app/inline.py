"""Which batches an engine runs faster than they are handed to another thread: measured when it is loaded."""

from __future__ import annotations

import time

import numpy as np

from engines.repository import Manifest
from engines.runtime.session import Session, Slot
from engines.tensor import DYNAMIC, TensorSpec

__all__ = ["INLINE_US", "inline_rows"]

INLINE_US = 200.0
"""What a hand-over to a thread and back costs beside a loop that serves: 150 to 220 us (measured)."""
_LOOK_CLOSER = 2
"""Up to so many times that, a run on the threads of the engine may be one of less on the caller's alone."""
_RUNS = 9


def inline_rows(session: Session, manifest: Manifest, most_rows: int) -> int:
    """The most rows, a power of two or `most_rows`, whose run takes less than INLINE_US; 0 where one row takes more.

    Also 0 where sizes are the client's: it could ask for one that takes long, and the loop serves everybody.
    """
    if any(DYNAMIC in spec.row_shape for spec in manifest.inputs) or manifest.fails_on_values:
        return 0
    first_us = _least_us(session.slots[0], manifest, 1)
    if first_us is None or first_us >= _LOOK_CLOSER * INLINE_US:  # another engine would be in vain, and takes memory
        return 0
    found = _rows_within(session.open_inline(), manifest, most_rows)
    if not found:
        session.close_inline()
    return found


def _rows_within(slot: Slot, manifest: Manifest, most_rows: int) -> int:
    found, rows = 0, 1
    while rows <= (most_rows if manifest.proof.batchable else 1):
        taken_us = _least_us(slot, manifest, rows)
        if taken_us is None or taken_us >= INLINE_US:
            break
        found, rows = rows, 2 * rows if 2 * rows <= most_rows or rows == most_rows else most_rows
    return found


def _least_us(slot: Slot, manifest: Manifest, rows: int) -> float | None:
    """What a run takes where nobody is in its way: on a busy machine the median tells of the others. None: it fails."""
    for view in slot.bind({spec.name: _shape(spec, rows) for spec in manifest.inputs}).values():
        view[...] = np.zeros((), dtype=view.dtype)
    taken_us = []
    for _ in range(_RUNS):
        began_ns = time.perf_counter_ns()
        if slot.run() is not None:
            return None
        taken_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return min(taken_us)


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return tuple(rows if axis == spec.batch_axis else size for axis, size in enumerate(spec.shape))
