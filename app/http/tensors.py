"""Tensors on the wire: JSON lists and little-endian bytes to arrays, and back. Knows no model."""

from __future__ import annotations

import functools
import json
import math
import struct
from typing import Any

import msgspec
import numpy as np

from app.http.errors import BadRequest
from engines.tensor import BY_NAME, BY_NUMPY, DataType

__all__ = ["MAX_DEPTH", "bytes_of", "element_count", "from_bytes", "from_json", "json_of", "kind_of"]

MAX_DEPTH = 100
"""Triton's limit of JSON nesting."""

_MAX_INT64 = 2**63 - 1
_DEPTH_ERROR = f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})"


def kind_of(datatype: str, name: str) -> DataType:
    """The datatype of an input; BadRequest lists the known ones."""
    kind = BY_NAME.get(datatype)
    if kind is None:
        raise BadRequest(f"input '{name}' has unknown datatype '{datatype}'; expected one of {', '.join(BY_NAME)}")
    return kind


def element_count(name: str, shape: list[int], kind: DataType) -> int:
    """Elements of a shape, computed in unbounded integers; BadRequest where Triton's 64-bit sizes would overflow."""
    count = math.prod(shape)
    if count > _MAX_INT64 or any(size > _MAX_INT64 for size in shape):
        raise BadRequest(
            f"shape {shape} of input '{name}' causes total element count to exceed maximum size of {_MAX_INT64}"
        )
    if count * max(1, kind.item_bytes) > _MAX_INT64:
        raise BadRequest(f"byte size overflow for input '{name}' with shape {shape} of {kind.name}")
    return count


@functools.lru_cache(maxsize=256)
def _decoder(element: str, depth: int) -> msgspec.json.Decoder[Any]:
    annotation: Any = {"float": float, "int": int, "bool": bool | int, "str": str}[element]
    for _ in range(depth):
        annotation = list[annotation]
    return msgspec.json.Decoder(annotation)


def _element(kind: DataType) -> str:
    if kind.is_float:
        return "float"
    return {"BOOL": "bool", "BYTES": "str"}.get(kind.name, "int")


def from_json(name: str, data: bytes, shape: list[int], kind: DataType) -> np.ndarray:
    """Decode `data` strictly: numbers for numbers, in range for the datatype, as many as the shape says.

    Nested lists must not be ragged; how deep they nest is the client's choice, as in Triton.
    """
    stripped = data.lstrip(b"[ \t\r\n")
    depth = data[: len(data) - len(stripped)].count(b"[")
    if depth > MAX_DEPTH:
        raise BadRequest(_DEPTH_ERROR)
    if depth == 0:
        raise BadRequest(f"'data' of input '{name}' is not a list")
    try:
        values = _values(data, kind, depth)
        if kind.name == "BYTES":
            array = _strings(values, depth)
        elif kind.name == "BOOL":
            array = np.array(values, dtype=np.uint8)
            if array.size and int(array.max()) > 1:
                raise BadRequest(
                    f"'data' of input '{name}' holds a number that is no BOOL; expected true, false, 0 or 1"
                )
            array = array.astype(np.bool_)
        else:
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=kind.numpy)
    except (msgspec.DecodeError, ValueError, OverflowError, TypeError) as error:
        raise BadRequest(f"'data' of input '{name}' cannot be read as {kind.name}: {error}") from error
    if array.size != math.prod(shape):
        raise BadRequest(
            f"unable to parse 'data' of input '{name}': shape {shape} has {math.prod(shape)} elements, data has {array.size}"
        )
    return array.reshape(shape)


def _values(data: bytes, kind: DataType, depth: int) -> Any:
    try:
        return _decoder(_element(kind), depth).decode(data)
    except msgspec.DecodeError:
        if not kind.is_float or not (b"NaN" in data or b"Infinity" in data):
            raise
    values = json.loads(data)
    _decoder("float", depth).decode(json.dumps(values, default=str).replace("NaN", "0").replace("Infinity", "0"))
    return values


def _strings(values: list[Any], depth: int) -> np.ndarray:
    for _ in range(depth - 1):
        values = [item for inner in values for item in inner]
    array = np.empty(len(values), dtype=np.object_)
    array[:] = [value.encode() for value in values]
    return array


def from_bytes(name: str, data: memoryview, shape: list[int], kind: DataType) -> np.ndarray:
    """A read-only view of `data` (no copy), except for BOOL and BYTES; the size was checked unless BYTES."""
    if kind.name == "BYTES":
        return _unpack(name, data, shape)
    if kind.name == "BOOL":
        return (np.frombuffer(data, dtype=np.uint8) != 0).reshape(shape)
    return np.frombuffer(data, dtype=kind.numpy).reshape(shape)


def _unpack(name: str, data: memoryview, shape: list[int]) -> np.ndarray:
    """Each element is a 4-byte little-endian length and its bytes."""
    items: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise BadRequest(f"incomplete string length indicator for input '{name}'")
        (size,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + size > len(data):
            raise BadRequest(
                f"incomplete string data for input '{name}': expected {size} bytes, {len(data) - offset} are left"
            )
        items.append(bytes(data[offset : offset + size]))
        offset += size
    if len(items) != math.prod(shape):
        raise BadRequest(f"input '{name}' has {len(items)} strings, its shape {shape} has {math.prod(shape)} elements")
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def datatype_of(array: np.ndarray) -> DataType:
    """The protocol's datatype of an array."""
    return BY_NUMPY[array.dtype]


def bytes_of(array: np.ndarray) -> bytes:
    """A tensor's bytes, row-major, little-endian; a copy, so the array may be reused at once."""
    if array.dtype == np.object_:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return array.tobytes()


def json_of(array: np.ndarray) -> Any:
    """A tensor's flat data for a JSON answer.

    NaN and infinities are written as the tokens NaN, Infinity and -Infinity, as Triton does: JSON has none, and null
    would silently lose which one it was.
    """
    if array.dtype == np.object_:
        return [item.decode("utf-8", "replace") for item in array.ravel()]
    if array.dtype.kind in "iub":
        return array.ravel().tolist()
    floats = array.ravel().astype(np.float64) if array.dtype.itemsize == 2 else array.ravel()
    values = floats.tolist()
    if np.isfinite(floats).all():
        return values
    return msgspec.Raw(json.dumps(values).encode())
