"""Run a session once per slot and batch size before it is called ready, as a request would."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from engines.errors import DeviceLost, EngineFailed, OutOfMemory, PlanInvalid, ValuesRefused
from engines.repository import Manifest
from engines.runtime.session import Session, Slot
from engines.tensor import TensorSpec, datatype

__all__ = ["warm_up"]

_TIMEOUT_S = 60.0


def warm_up(session: Session, manifest: Manifest, rows: Sequence[int]) -> None:
    """Run so many rows, one number after the other, on every slot. Blocking.

    Raises EngineFailed, DeviceLost, OutOfMemory, or PlanInvalid where the engine's tensors are not those of the
    manifest.
    """
    for slot in session.slots:
        for count in rows:
            _run(slot, manifest, count)


def _run(slot: Slot, manifest: Manifest, rows: int) -> None:
    ended = threading.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    views = slot.bind({spec.name: _shape(spec, manifest, rows) for spec in manifest.inputs})
    _compare(manifest.inputs, views, rows)
    for view in views.values():
        view[...] = np.zeros((), dtype=view.dtype)
    slot.launch(done)
    if not ended.wait(_TIMEOUT_S):
        raise EngineFailed(f"the warm-up did not end within {_TIMEOUT_S:g} s")
    if errors[0] is not None and not isinstance(errors[0], ValuesRefused):  # it ran; zeros are not its kind of values
        if isinstance(errors[0], (DeviceLost, OutOfMemory)):
            raise errors[0]
        if manifest.fails_on_values:
            return
        raise EngineFailed(f"the warm-up failed: {errors[0]}")
    _compare(manifest.outputs, slot.outputs(), rows)


def _compare(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray], rows: int) -> None:
    """A manifest that does not describe its engine would be believed when requests are read and answers written."""
    for spec in specs:
        wanted, found = datatype(spec.datatype).numpy, arrays[spec.name]
        if found.dtype != wanted or found.ndim != len(spec.shape):
            raise PlanInvalid(
                f"the engine's {spec.name!r} is {found.dtype} {list(found.shape)}; its manifest says {spec.datatype} "
                f"{list(spec.shape)}"
            )
        if spec.batch_axis is not None and found.shape[spec.batch_axis] != rows:
            raise PlanInvalid(f"the engine's {spec.name!r} has shape {list(found.shape)} for a batch of {rows} rows")


def _shape(spec: TensorSpec, manifest: Manifest, rows: int) -> tuple[int, ...]:
    shape = manifest.sample_shapes[spec.name]
    return tuple(rows if axis == spec.batch_axis else size for axis, size in enumerate(shape))
