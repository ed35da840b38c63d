"""Values for the inputs of a model: drawn in its datatypes and shapes, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.bench.errors import BenchFailed
from app.bench.target import Target
from app.client import Mistake, load_inputs
from engines.tensor import TensorSpec, datatype

__all__ = ["ASSUMED_SIZE", "CannotDraw", "draw", "drawn", "given", "with_sizes"]

ASSUMED_SIZE = 16
"""Of a dimension that the model leaves open, where nobody says another."""
_DISTINCT_ROWS = 64
_MOST_VALUES = 4_194_304
_INTEGERS = 100
"""Whole numbers lie below it where the model names no range: sizes, classes and tokens are small."""
_ALL_BITS = 63


class CannotDraw(ValueError):
    """The message says which input, and why."""


def draw(rng: np.random.Generator, spec: TensorSpec, count: int) -> np.ndarray:
    """So many values in the input's datatype, within the ranges that are known of it. CannotDraw for BYTES."""
    kind = datatype(spec.datatype)
    if kind.is_float:
        values: np.ndarray = rng.standard_normal(count, dtype=np.float32)
        if spec.largest:
            values = values.clip(-spec.largest, spec.largest)
    elif kind.name == "BOOL":
        values = rng.integers(0, 2, count)
    elif kind.item_bytes:
        low, high = spec.value_range or (0, _highest(spec, kind.numpy))
        values = rng.integers(low, high, count, endpoint=True)
    else:
        raise CannotDraw(f"input {spec.name!r} is {kind.name}, which cannot be drawn")
    return values.astype(kind.numpy)


def _highest(spec: TensorSpec, kind: np.dtype) -> int:
    bound = 2**spec.integer_bits - 1 if spec.integer_bits < _ALL_BITS else _INTEGERS
    return int(min(_INTEGERS - 1, bound, np.iinfo(kind).max))


def with_sizes(target: Target, sizes: Mapping[str, Sequence[int]]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The shape of one row of each input (its leading 1 included where it has rows), and which sizes were assumed.

    `sizes` are shapes that the user gave, without the dimension of rows. Raises BenchFailed where one does not fit.
    """
    names = [tensor.name for tensor in target.inputs]
    for name in sizes:
        if name not in names:
            raise BenchFailed(f"--shape {name}: the model has no such input; it takes {', '.join(names)}")
    shapes, assumed = {}, []
    for tensor in target.inputs:
        shape = tensor.shape_of(1)
        asked = sizes.get(tensor.name)
        if asked is not None:
            shapes[tensor.name] = (1, *asked) if tensor.has_rows else tuple(asked)
            sizes_fit = [known in (-1, size) for known, size in zip(shape, shapes[tensor.name], strict=False)]
            if len(shape) != len(shapes[tensor.name]) or not all(sizes_fit):
                expected = [*shape[1:]] if tensor.has_rows else [*shape]
                raise BenchFailed(f"--shape {tensor.name}: {list(asked)} does not fit {expected}; -1 is any size")
            continue
        if -1 in shape:
            assumed.append(tensor.name)
        shapes[tensor.name] = tuple(ASSUMED_SIZE if size == -1 else size for size in shape)
    return shapes, assumed


def drawn(target: Target, rows: int, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Arrays by input name, seeded: several times the rows of a request, as memory allows. Raises BenchFailed."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in target.inputs:
        one = int(np.prod(shapes[tensor.name], dtype=np.int64))
        count = max(rows + 1, min(_DISTINCT_ROWS * rows, _MOST_VALUES // max(1, one))) if tensor.has_rows else 1
        try:
            values = draw(rng, TensorSpec(tensor.name, tensor.datatype, tensor.shape), one * count)
        except CannotDraw as error:
            raise BenchFailed(f"{error}; give --input {tensor.name}=FILE.npy") from error
        shape = shapes[tensor.name]
        arrays[tensor.name] = values.reshape((count, *shape[1:]) if tensor.has_rows else shape)
    return arrays


def given(target: Target, arguments: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by input name, of `--input`. All have the same number of rows. Raises BenchFailed."""
    try:
        arrays = load_inputs(arguments, target.metadata)
    except Mistake as mistake:
        raise BenchFailed(str(mistake)) from mistake
    for tensor in target.inputs:
        shape = arrays[tensor.name].shape
        fits = len(shape) == len(tensor.shape) and all(k in (-1, n) for k, n in zip(tensor.shape, shape, strict=True))
        if not fits:
            raise BenchFailed(f"--input: {tensor.name!r} has the shape {list(shape)}; expected {list(tensor.shape)}")
    counts = {tensor.name: len(arrays[tensor.name]) for tensor in target.inputs if tensor.has_rows}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise BenchFailed(f"--input: every input needs the same number of rows; {told}")
    if 0 in counts.values():
        raise BenchFailed("--input: there are no rows in it; expected at least one")
    return arrays
