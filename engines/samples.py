"""Synthetic inputs for the proofs: different from each other, in several magnitudes, and accepted by the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from engines.errors import ModelRefused
from engines.reference import Arrays
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["SCALES", "Sampler", "find_sampler"]

SCALES = (1.0, 1.0, 0.25, 4.0, 1.0, 16.0)
"""Standard deviations of the float samples: a scale taken over the whole batch changes when they meet."""

_SIZES = (32, 16, 64, 8, 7, 224, 4, 2, 1)
_INT_LIMITS = (256, 100, 32, 8, 2, 1)
_MAX_SAMPLE_BYTES = 2**28


class Sampler:
    """Draws single rows: every dynamic dimension has `size`, integers lie in [0, int_limit)."""

    def __init__(self, inputs: Sequence[TensorSpec], axes: Mapping[str, int], size: int, int_limit: int) -> None:
        self._inputs, self._axes, self.size, self.int_limit = inputs, dict(axes), size, int_limit

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        axis = self._axes.get(spec.name)
        return tuple(1 if i == axis else self.size if d == DYNAMIC else d for i, d in enumerate(spec.shape))

    def draw(self, seed: int, scale: float = 1.0) -> Arrays:
        """One row of each input, of standard deviation `scale` where it is floating point."""
        rng = np.random.default_rng(seed)
        return {spec.name: np.asarray(self._tensor(rng, spec, scale)) for spec in self._inputs}

    def _tensor(self, rng: np.random.Generator, spec: TensorSpec, scale: float) -> np.ndarray:
        kind, shape = datatype(spec.datatype), self.shape(spec)
        if kind.is_float:
            return (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(kind.numpy)
        if kind.name == "BOOL":
            return rng.integers(0, 2, shape).astype(kind.numpy)
        limit = min(self.int_limit, np.iinfo(kind.numpy).max)
        return rng.integers(0, limit, shape).astype(kind.numpy)

    def bytes_per_row(self) -> int:
        return sum(int(np.prod(self.shape(s), dtype=np.int64)) * datatype(s.datatype).item_bytes for s in self._inputs)


def find_sampler(
    inputs: Sequence[TensorSpec], axes: Mapping[str, int], reference: Callable[[Arrays], Arrays]
) -> Sampler:
    """The first combination of sizes and integer range that the reference runs without an error.

    A table look-up with an index out of range is undefined in an engine but an error in the reference, so the
    reference decides. Raises ModelRefused with its last words where none runs.
    """
    last = "every combination of sizes needs more than 256 MiB a row"
    for sampler in _combinations(inputs, axes):
        if sampler.bytes_per_row() > _MAX_SAMPLE_BYTES:
            continue
        try:
            for seed, scale in enumerate(SCALES):
                reference(sampler.draw(seed, scale))
        except Exception as error:
            last = str(error).splitlines()[0]
        else:
            return sampler
    raise ModelRefused(f"no sample input could be run by ONNX Runtime; the last attempt said: {last}")


def _combinations(inputs: Sequence[TensorSpec], axes: Mapping[str, int]) -> Iterator[Sampler]:
    dynamic = any(d == DYNAMIC for s in inputs for i, d in enumerate(s.shape) if i != axes.get(s.name))
    integers = any(not datatype(s.datatype).is_float and s.datatype != "BOOL" for s in inputs)
    for int_limit in _INT_LIMITS if integers else _INT_LIMITS[:1]:
        for size in _SIZES if dynamic else _SIZES[:1]:
            yield Sampler(inputs, axes, size, int_limit)
