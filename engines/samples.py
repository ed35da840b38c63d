"""Synthetic inputs for the proofs: different from each other, in several magnitudes, and accepted by the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engines.errors import ModelRefused
from engines.reference import Arrays
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = [
    "OTHER_ROWS", "SCALES", "Dim", "GivenSampler", "Others", "Sampler", "find_sampler", "integer_limits",
    "other_samplers",
]  # fmt: skip

SCALES = (1.0, 1.0, 0.25, 4.0, 1.0, 16.0)
"""Standard deviations of the float samples: a scale taken over the whole batch changes when they meet."""

OTHER_ROWS = 4
"""Rows that are compared at every further size."""

_SIZES = (32, 16, 64, 8, 7, 224, 4, 2, 1)
_LARGER = (75, 64, 48, 33, 17, 9, 256)
_SMALLER = (13, 16, 8, 7, 4, 3, 2, 192)
"""Sizes to compare with the first: odd ones before those that networks with strides or pieces ask for."""

_STEP = 3
_INT_LIMITS = (256, 100, 32, 8, 2, 1)
_SIZE_LIMITS = (8, 4, 2, 1, 32, 100)
_MAX_SAMPLE_BYTES = 2**28
_MAX_OTHER_BYTES = 2**24
_MAX_OTHER_S = 1.0
_MAX_APART = 8
"""Variable dimensions that are also resized one by one."""

Dim = tuple[str, int]
"""A dimension: the input's name, and the axis."""


class Sampler:
    """Draws single rows: a dynamic dimension has `size`, and `step` more for each axis before it; integers lie in
    [0, int_limit). Dimensions in `kept` have the size that is given there.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], axes: Mapping[str, int], size: int, int_limit: int, step: int = 0,
        kept: Mapping[Dim, int] | None = None,
    ) -> None:  # fmt: skip
        self.inputs, self.axes, self.size, self.int_limit, self.step = inputs, dict(axes), size, int_limit, step
        self.kept = kept or {}

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        row = self.axes.get(spec.name)
        sizes = (
            1 if i == row else self.kept.get((spec.name, i), self.size + i * self.step) if d == DYNAMIC else d
            for i, d in enumerate(spec.shape)
        )
        return tuple(sizes)

    @property
    def words(self) -> str:
        """The size, in words."""
        said = f"{self.size} and {self.step} more for each axis" if self.step else str(self.size)
        return f"{said}, others as they were" if self.kept else said

    def draw(self, seed: int, scale: float = 1.0) -> Arrays:
        """One row of each input, of standard deviation `scale` where it is floating point."""
        rng = np.random.default_rng(seed)
        return {spec.name: np.asarray(self._tensor(rng, spec, scale)) for spec in self.inputs}

    def _tensor(self, rng: np.random.Generator, spec: TensorSpec, scale: float) -> np.ndarray:
        kind, shape = datatype(spec.datatype), self.shape(spec)
        if kind.is_float:
            return (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(kind.numpy)
        if kind.name == "BOOL":
            return rng.integers(0, 2, shape).astype(kind.numpy)
        limit = min(self.int_limit, np.iinfo(kind.numpy).max)
        return rng.integers(0, limit, shape).astype(kind.numpy)

    def rows(self, count: int = len(SCALES)) -> list[Arrays]:
        """The first rows of every proof, one for each of `SCALES`."""
        return [self.draw(seed, scale) for seed, scale in enumerate(SCALES[:count])]

    @property
    def variable(self) -> dict[Dim, int]:
        """The variable dimensions beside the batch, and their sizes here."""
        return {
            (s.name, i): self.shape(s)[i]
            for s in self.inputs
            for i, d in enumerate(s.shape)
            if d == DYNAMIC and i != self.axes.get(s.name)
        }

    @property
    def is_variable(self) -> bool:
        """Whether there are variable dimensions beside the batch."""
        return bool(self.variable)

    def resized(self, size: int, moved: Collection[Dim] | None = None) -> Sampler:
        """The same inputs at another size of the variable dimensions, or of those in `moved`."""
        kept = {} if moved is None else {dim: old for dim, old in self.variable.items() if dim not in moved}
        return Sampler(self.inputs, self.axes, size, self.int_limit, kept=kept)

    def uneven(self) -> list[Sampler]:
        """The same with another size along each axis, as far as an input has several that are variable."""
        several = any(
            sum(d == DYNAMIC and i != self.axes.get(s.name) for i, d in enumerate(s.shape)) > 1 for s in self.inputs
        )
        steps = (_STEP, self.size) if several else ()  # a multiple for networks with strides
        return [Sampler(self.inputs, self.axes, self.size, self.int_limit, step) for step in steps]

    def bytes_per_row(self) -> int:
        return sum(int(np.prod(self.shape(s), dtype=np.int64)) * datatype(s.datatype).item_bytes for s in self.inputs)


class GivenSampler(Sampler):
    """The rows that the sender of a model gave, over and over: for a model that takes no made-up ones."""

    def __init__(self, inputs: Sequence[TensorSpec], axes: Mapping[str, int], rows: Sequence[Arrays]) -> None:
        first = {name: array.shape for name, array in rows[0].items()}
        self._rows = [row for row in rows if {name: array.shape for name, array in row.items()} == first]
        integers = [
            int(array.max(initial=0)) for row in self._rows for array in row.values() if array.dtype.kind in "iu"
        ]
        super().__init__(inputs, axes, 0, max(integers, default=0) + 1)

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return self._rows[0][spec.name].shape

    def draw(self, seed: int, scale: float = 1.0) -> Arrays:
        return self._rows[seed % len(self._rows)]

    @property
    def is_variable(self) -> bool:
        """Not to be resized."""
        return False


def integer_limits(sized_by_values: bool) -> tuple[int, ...]:
    """Below what whole numbers are drawn, in the order of trying; small ones first where they may be sizes: a padding
    of 256 on every side of an image batch would take all memory there is.
    """
    return _SIZE_LIMITS if sized_by_values else _INT_LIMITS


def find_sampler(
    inputs: Sequence[TensorSpec], axes: Mapping[str, int], reference: Callable[[Arrays], Arrays],
    limits: Sequence[int],
) -> Sampler:  # fmt: skip
    """The first combination of sizes and integer range that the reference runs without an error.

    A table look-up with an index out of range is undefined in an engine but an error in the reference, so the
    reference decides. `limits` are those of `integer_limits`. Raises ModelRefused with its last words where none runs.
    """
    last = "every combination of sizes needs more than 256 MiB a row"
    for sampler in _combinations(inputs, axes, limits):
        if sampler.bytes_per_row() > _MAX_SAMPLE_BYTES:
            continue
        try:
            for row in sampler.rows():
                reference(row)
        except Exception as error:
            last = str(error).splitlines()[0]
        else:
            return sampler
    raise ModelRefused(f"no sample input could be run by ONNX Runtime; the last attempt said: {last}")


class Others(NamedTuple):
    """Further sizes that the reference takes, and the size of each dimension of which it takes no other."""

    samplers: list[Sampler]
    pinned: dict[Dim, int]


def other_samplers(first: Sampler, reference: Callable[[Arrays], Arrays], own: Sequence[Arrays] = ()) -> Others:
    """A larger, a smaller and an uneven size of the variable dimensions, as far as the reference takes one within a
    second. Where it takes none, they are resized in parts. Nothing where the shapes are fixed.

    A dimension that `own`, samples that the reference takes, have in several sizes is not pinned; nor is any where a
    size was not tried because it would have taken too long.
    """
    if not first.is_variable:
        return Others([], {})
    tries = _Tries(reference)
    larger = (first.resized(size) for size in _LARGER if size > first.size)
    smaller = (first.resized(size) for size in _SMALLER if size < first.size)
    taken = [tries.first_taken(side) for side in (larger, smaller, first.uneven())]
    found = [sampler for sampler in taken if sampler is not None] or _resized_in_parts(first, tries)
    if tries.untold:
        return Others(found, {})
    seen = [sampler.variable for sampler in found]
    seen += [{(name, i): size for name, array in row.items() for i, size in enumerate(array.shape)} for row in own]
    return Others(found, {d: size for d, size in first.variable.items() if all(s.get(d, size) == size for s in seen)})


def _resized_in_parts(first: Sampler, tries: _Tries) -> list[Sampler]:
    """Each variable dimension alone, and all but each, until all that can be moved were."""
    dims = set(first.variable)
    found: list[Sampler] = []
    moved: set[Dim] = set()
    if not 1 < len(dims) <= _MAX_APART:
        return found
    near = [size for size in (2 * first.size, first.size // 2, first.size + 1, first.size - 1) if size > 0]
    for part in [*({dim} for dim in sorted(dims)), *(dims - {dim} for dim in sorted(dims))]:
        sampler = None if part <= moved else tries.first_taken(first.resized(size, part) for size in near)
        if sampler is not None:
            found.append(sampler)
            moved |= part
    return found


class _Tries:
    """Which sizes the reference takes; `untold` once one was too large, or took too long, to find out."""

    def __init__(self, reference: Callable[[Arrays], Arrays]) -> None:
        self._reference, self.untold = reference, False

    def first_taken(self, samplers: Iterable[Sampler]) -> Sampler | None:
        return next((sampler for sampler in samplers if self._takes(sampler)), None)

    def _takes(self, sampler: Sampler) -> bool:
        if sampler.bytes_per_row() > _MAX_OTHER_BYTES:
            self.untold = True
            return False
        for row in sampler.rows(OTHER_ROWS):
            started = time.perf_counter()
            try:
                self._reference(row)
            except Exception:
                return False
            if time.perf_counter() - started > _MAX_OTHER_S:
                self.untold = True
                return False
        return True


def _combinations(inputs: Sequence[TensorSpec], axes: Mapping[str, int], limits: Sequence[int]) -> Iterator[Sampler]:
    dynamic = Sampler(inputs, axes, 1, 1).is_variable
    integers = any(not datatype(s.datatype).is_float and s.datatype != "BOOL" for s in inputs)
    for int_limit in limits if integers else limits[:1]:
        for size in _SIZES if dynamic else _SIZES[:1]:
            yield Sampler(inputs, axes, size, int_limit)
