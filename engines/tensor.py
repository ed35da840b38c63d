"""Tensor datatypes and specifications: one table, shared by the compiler, the runtimes and the wire codec."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import msgspec
import numpy as np

__all__ = ["BY_NAME", "DYNAMIC", "DataType", "ShapeRange", "TensorSpec", "datatype"]

DYNAMIC = -1
"""A dimension whose size is known only when a request arrives."""
ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The smallest shape of an input, the one that an engine is fastest at, and the largest."""


@dataclass(frozen=True, slots=True)
class DataType:
    """One datatype of the Open Inference Protocol.

    `item_bytes` is 0 for BYTES: each element is a 4-byte little-endian length followed by its bytes.
    """

    name: str
    numpy: np.dtype
    item_bytes: int

    @property
    def config_name(self) -> str:
        """The name in a model configuration: TYPE_STRING for BYTES, else TYPE_<name>."""
        return "TYPE_STRING" if self.name == "BYTES" else f"TYPE_{self.name}"

    @property
    def is_float(self) -> bool:
        return self.name in ("FP16", "BF16", "FP32", "FP64")


def _table() -> dict[str, DataType]:
    numeric: dict[str, np.dtype] = {
        "BOOL": np.dtype(np.bool_),
        **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
        **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
        **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
        "BF16": np.dtype(ml_dtypes.bfloat16),
    }
    table = {name: DataType(name, dtype, dtype.itemsize) for name, dtype in numeric.items()}
    table["BYTES"] = DataType("BYTES", np.dtype(np.object_), 0)
    return table


BY_NAME: dict[str, DataType] = _table()


def datatype(name: str) -> DataType:
    """Look a datatype up by its protocol name; KeyError lists the names that exist."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise KeyError(f"unknown datatype {name!r}; expected one of {', '.join(BY_NAME)}") from None


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, datatype and shape of one input or output.

    `shape` is the full shape, batch axis included; -1 marks a variable dimension. `batch_axis` is the axis that
    was proven to carry independent rows, or None where requests must run one at a time. `integer_bits` bounds an
    integer input: magnitudes from 2 to this power on were not found right (an engine may cut them); 63 = no bound.
    `value_range` is what an input that indexes a table may hold, both ends included. `largest` bounds the finite
    magnitudes of a floating-point input that the engine computes in a narrower type; 0 = no bound.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = None
    integer_bits: int = 63
    value_range: tuple[int, int] | None = None
    largest: float = 0.0

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape without the batch axis (the whole shape where there is none)."""
        if self.batch_axis is None:
            return self.shape
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]
