"""Flat JSON lists of numbers: the fast twins of `tensors.from_json` and `tensors.json_of`."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from engines.tensor import BY_NAME, DataType

__all__ = ["FlatList", "flat", "written"]

_CODES = {
    "FP16": "e", "FP32": "f", "FP64": "d",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
}  # fmt: skip
_WRITTEN = frozenset(BY_NAME[name].numpy for name in (*_CODES, "BOOL"))
_MOST_WRITTEN = 4096
_encode = msgspec.json.Encoder().encode
_LISTS: dict[bool, msgspec.json.Decoder[Any]] = {
    True: msgspec.json.Decoder(list[float]),
    False: msgspec.json.Decoder(list[int]),
}


class FlatList:
    """What a JSON list means as a tensor of a shape and datatype that are known."""

    __slots__ = ("_decode", "_dtype", "_pack", "_shape")

    def __init__(self, shape: Sequence[int], kind: DataType) -> None:
        """KeyError for BOOL, BYTES and BF16, which are not read here."""
        code = _CODES[kind.name]
        self._shape, self._dtype = tuple(shape), kind.numpy
        self._decode = _LISTS[kind.is_float].decode
        self._pack = struct.Struct(f"<{math.prod(shape)}{code}").pack

    def read(self, text: bytes) -> np.ndarray | None:
        """Read-only. None unless `text` is a flat list of as many numbers, in range: `tensors.from_json` says of the
        rest what it is.

        `struct` rounds to the nearest as NumPy does, takes four fifths of the time less, and refuses what overflows.
        """
        try:
            return np.ndarray(self._shape, self._dtype, self._pack(*self._decode(text)))
        except (msgspec.DecodeError, struct.error, OverflowError):
            return None


def flat(text: bytes, kind: DataType) -> np.ndarray | None:
    """A flat list of any length, [n], as `FlatList` reads it."""
    code = _CODES.get(kind.name)
    if code is None:
        return None
    try:
        values = _LISTS[kind.is_float].decode(text)
        return np.frombuffer(struct.pack(f"<{len(values)}{code}", *values), kind.numpy)
    except (msgspec.DecodeError, struct.error, OverflowError):
        return None


def written(array: np.ndarray) -> bytes | None:
    """A short array as a flat JSON list, as `tensors.json_of` comes to be written.

    None where it is long, holds what is not written here, or where one may not be finite: the sum of the values
    tells, in a fifth of the time that a look at each takes. A sum of finite values may overflow, too.
    """
    if array.dtype not in _WRITTEN or array.size > _MOST_WRITTEN:
        return None
    values = array.ravel().tolist()
    if array.dtype.kind == "f" and not math.isfinite(sum(values)):
        return None
    return _encode(values)
