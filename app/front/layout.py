"""Tensors in a block of shared memory: one after the other, each aligned, in the order that both ends know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from engines.tensor import TensorSpec, datatype

__all__ = ["packed_bytes", "read", "write"]

_ALIGNMENT = 64
"""Bytes: a cache line, and what vector instructions like best."""


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def packed_bytes(arrays: Iterable[np.ndarray]) -> int:
    """What a block needs for them."""
    return sum(_aligned(array.nbytes) for array in arrays)


def write(memory: memoryview, offset: int, arrays: Iterable[np.ndarray]) -> None:
    """Copy the elements of each, row-major, whatever its strides."""
    for array in arrays:
        np.copyto(_view(memory, offset, array.dtype, array.shape), array)
        offset += _aligned(array.nbytes)


def read(
    memory: memoryview, offset: int, specs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Views of what was written, valid while the block is. ValueError where the memory ends before them."""
    views = []
    for spec, shape in zip(specs, shapes, strict=True):
        view = _view(memory, offset, datatype(spec.datatype).numpy, shape)
        views.append(view)
        offset += _aligned(view.nbytes)
    return views


def _view(memory: memoryview, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.ndarray(shape, dtype, memory, offset)
