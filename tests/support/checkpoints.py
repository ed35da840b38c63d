"""Read the tensors of a torch checkpoint of the older, unzipped form without torch, and without running what it says.

Such a file is five pickles (magic, version, system, the objects, names of storages), then every storage: its count of
elements as int64 and its elements, all little-endian. (torch/serialization.py, `_legacy_load`.)
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

__all__ = ["read_checkpoint"]

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _View(NamedTuple):
    storage: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """Knows dictionaries, tensors and their storages; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _View(*storage, offset, tuple(shape), tuple(strides))
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint of tensors")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        return str(pid[2]), _DTYPES[pid[1]]


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name. Raises UnpicklingError where it holds something else."""
    with path.open("rb") as file:
        magic, _, _, views, names = (_Reader(file).load() for _ in range(5))
        if magic != _MAGIC:
            raise pickle.UnpicklingError(f"{path.name} is no torch checkpoint of the unzipped form")
        dtypes = {view.storage: view.dtype for view in views.values()}
        storages = {name: _storage(file, dtypes[name]) for name in names}
    return {name: _array(view, storages[view.storage]) for name, view in views.items()}


def _array(view: _View, storage: np.ndarray) -> np.ndarray:
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True))
    if min((view.offset, *view.strides, *view.shape)) < 0 or last >= len(storage):
        raise pickle.UnpicklingError(f"a tensor reaches beyond its {len(storage)} stored elements")
    strides = [step * storage.itemsize for step in view.strides]
    seen = np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides, writeable=False)
    return np.ascontiguousarray(seen)


def _storage(file: BinaryIO, dtype: np.dtype[Any]) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)
