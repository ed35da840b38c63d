"""Run a session once per slot and batch size before it is called ready, as a request would."""

from __future__ import annotations

import threading

import numpy as np

from engines.errors import EngineFailed, ValuesRefused
from engines.repository import Manifest
from engines.runtime.session import Session, Slot
from engines.tensor import TensorSpec

__all__ = ["warm_up"]

_TIMEOUT_S = 60.0


def warm_up(session: Session, manifest: Manifest) -> None:
    """Run one row, and two where rows may share a batch, on every slot. Blocking; raises EngineFailed."""
    for slot in session.slots:
        for rows in (1, 2) if manifest.proof.batchable else (1,):
            _run(slot, manifest, rows)


def _run(slot: Slot, manifest: Manifest, rows: int) -> None:
    ended = threading.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    views = slot.bind({spec.name: _shape(spec, manifest, rows) for spec in manifest.inputs})
    for view in views.values():
        view[...] = np.zeros((), dtype=view.dtype)
    slot.launch(done)
    if not ended.wait(_TIMEOUT_S):
        raise EngineFailed(f"the warm-up did not end within {_TIMEOUT_S:g} s")
    if errors[0] is not None and not isinstance(errors[0], ValuesRefused):  # it ran; zeros are not its kind of values
        raise EngineFailed(f"the warm-up failed: {errors[0]}")


def _shape(spec: TensorSpec, manifest: Manifest, rows: int) -> tuple[int, ...]:
    shape = manifest.sample_shapes[spec.name]
    return tuple(rows if axis == spec.batch_axis else size for axis, size in enumerate(shape))
