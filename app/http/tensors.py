"""Tensors on the wire: JSON lists and little-endian bytes to arrays, and back. Knows no model."""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from app.http import numbers
from app.http.bodies import Body
from app.http.errors import BadRequest
from app.http.pieces import Buffer, read_numbers
from app.http.workers import INLINE_BYTES
from engines.tensor import BY_NAME, DataType

__all__ = [
    "MAX_DEPTH",
    "bytes_of",
    "check_depth",
    "check_keys",
    "element_count",
    "from_bytes",
    "from_json",
    "json_of",
    "kind_of",
]

MAX_DEPTH = 100
"""Triton's limit of JSON nesting."""

_MAX_INT64 = 2**63 - 1
_MAX_DIMS = 64
"""NumPy's own limit; without it a shape could also be so long that its product takes minutes."""
_OPENING = re.compile(rb"[\[ \t\r\n]*")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_NO_KEYS = bytes(set(range(256)) - set(b':"'))
_MAX_KEYS = 16384
"""Of all inputs, outputs and parameters together: read in some milliseconds."""
_STRING = re.compile(rb'"[^"]*"')
_LOOK_BYTES = 1_048_576
"""Looked through at once: whoever does holds the interpreter meanwhile."""
_PIECE_VALUES = 16384
"""Written as JSON in about a millisecond; with NaN among them, in ten."""
_encoder = msgspec.json.Encoder()
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


def check_depth(data: Body) -> None:
    """BadRequest where JSON nests too deep, wherever that is: also in keys that nobody reads.

    Few brackets cannot nest deep, so that flat data costs two counts; only nested lists are looked at closely.
    """
    starts = range(0, len(data), _LOOK_BYTES)
    if sum(data.count(bracket, at, at + _LOOK_BYTES) for at in starts for bracket in b"[{") <= MAX_DEPTH:
        return
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRING.sub(b"", data.translate(None, _NO_BRACKETS))
    depth = 0
    for start in range(0, len(brackets), 65536):
        depths = depth + np.cumsum(_STEP[np.frombuffer(brackets[start : start + 65536], np.uint8)], dtype=np.int64)
        if int(depths.max()) > MAX_DEPTH:
            raise BadRequest(f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})")
        depth = int(depths[-1])


def check_keys(data: Body, pause: Callable[[], None]) -> None:
    """BadRequest where JSON has far more keys than any request, before objects are made of all of them at once.

    Each key has a colon after it; only where there are many is it looked at which of them are in strings.
    """
    starts = range(0, len(data), _LOOK_BYTES)
    if len(data) <= _MAX_KEYS or sum(data.count(b":", at, at + _LOOK_BYTES) for at in starts) <= _MAX_KEYS:
        return
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = keys = 0
    for start in range(0, len(data), _LOOK_BYTES):
        pause()
        marks = np.frombuffer(data[start : start + _LOOK_BYTES].translate(None, _NO_KEYS), np.uint8)
        seen = quotes + np.cumsum(marks == ord('"'))
        keys += int(np.count_nonzero((marks == ord(":")) & (seen % 2 == 0)))
        if keys > _MAX_KEYS:
            check_depth(data)  # objects within objects have many keys too, and that is not what is wrong with them
            raise BadRequest(f"the request's JSON has more than {_MAX_KEYS} keys")
        quotes = int(seen[-1]) if seen.size else quotes


def kind_of(datatype: str, name: str) -> DataType:
    """The datatype of an input; BadRequest lists the known ones."""
    kind = BY_NAME.get(datatype)
    if kind is None:
        raise BadRequest(f"input '{name}' has unknown datatype '{datatype}'; expected one of {', '.join(BY_NAME)}")
    return kind


def element_count(name: str, shape: list[int], kind: DataType) -> int:
    """Elements of a shape, computed in unbounded integers; BadRequest where Triton's 64-bit sizes would overflow.

    Zeros do not excuse the other sizes: an array of shape [0, 2**62, 2**62] cannot be made.
    """
    if len(shape) > _MAX_DIMS:
        raise BadRequest(f"shape of input '{name}' has {len(shape)} dimensions; expected at most {_MAX_DIMS}")
    count = math.prod(shape)
    extent = count or math.prod(size or 1 for size in shape)
    if extent > _MAX_INT64:
        raise BadRequest(
            f"shape {_shown(shape)} of input '{name}' causes total element count to exceed maximum size of {_MAX_INT64}"
        )
    if extent * max(1, kind.item_bytes) > _MAX_INT64:
        raise BadRequest(f"byte size overflow for input '{name}' with shape {_shown(shape)} of {kind.name}")
    return count


def _shown(shape: list[int]) -> str:
    text = str(shape)
    return text if len(text) <= 200 else f"{text[:200]}..."


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


def from_json(
    name: str, data: Buffer, shape: list[int], kind: DataType, pause: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Decode JSON `data` strictly: numbers for numbers, in range for the datatype, as many as the shape says.

    Nested lists must not be ragged; how deep they nest is the client's choice, as in Triton. `pause` is called now and
    then where it takes long; what it raises ends the work.
    """
    opening = _OPENING.match(data)
    assert opening is not None  # nothing at all matches, too
    depth = opening[0].count(b"[")
    if depth == 0:
        raise BadRequest(f"'data' of input '{name}' is not a list")
    try:
        if len(data) > INLINE_BYTES and kind.name != "BYTES":
            array = read_numbers(memoryview(data), depth, functools.partial(_flat, kind), pause)
        else:
            array = _array(_values(data, kind, depth), kind, depth)
    except (msgspec.DecodeError, ValueError, OverflowError, TypeError) as error:
        raise BadRequest(f"'data' of input '{name}' cannot be read as {kind.name}: {error}") from error
    count = math.prod(shape)
    if array.size != count:
        raise BadRequest(
            f"unable to parse 'data' of input '{name}': shape {_shown(shape)} has {count} elements, "
            f"data has {array.size}"
        )
    return array.reshape(shape)


def _flat(kind: DataType, piece: bytes) -> np.ndarray:
    fast = numbers.flat(piece, kind)
    return fast if fast is not None else _array(_values(piece, kind, 1), kind, 1)


def _array(values: list[Any], kind: DataType, depth: int) -> np.ndarray:
    """ValueError where a list is ragged or a number does not fit the datatype."""
    if kind.name == "BYTES":
        return _strings(values, depth)
    if kind.name == "BOOL":
        array = np.array(values, dtype=np.uint8)
        if array.size and int(array.max()) > 1:
            raise ValueError("expected true, false, 0 or 1")
        return array.astype(np.bool_)
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=kind.numpy)
    if kind.is_float and kind.name != "FP64":
        infinite = np.isinf(array)
        if infinite.any() and not np.isinf(np.array(values, dtype=np.float64)[infinite]).all():
            raise ValueError("a number is out of range")
    return array


def _values(data: Buffer, kind: DataType, depth: int) -> Any:
    try:
        return _decoder(_element(kind), depth).decode(data)
    except msgspec.DecodeError:
        data = bytes(data)
        if not kind.is_float or not (b"NaN" in data or b"Infinity" in data):
            raise
    values = json.loads(data, parse_int=_finite, parse_float=_finite)  # as msgspec reads them where there is no NaN
    _decoder("float", depth).decode(json.dumps(values, default=str).replace("NaN", "0").replace("Infinity", "0"))
    return values


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is out of range")
    return value


def _strings(values: list[Any], depth: int) -> np.ndarray:
    for _ in range(depth - 1):
        if len({len(inner) for inner in values}) > 1:
            raise ValueError("the lists are ragged")
        values = [item for inner in values for item in inner]
    array = np.empty(len(values), dtype=np.object_)
    array[:] = [value.encode() for value in values]
    return array


def from_bytes(name: str, data: memoryview, shape: list[int], kind: DataType) -> np.ndarray:
    """A read-only view of `data` (no copy), except for BOOL and BYTES; the size was checked unless BYTES."""
    if kind.name == "BYTES":
        return _unpack(name, data, shape)
    array: np.ndarray = np.frombuffer(data, dtype=np.uint8 if kind.name == "BOOL" else kind.numpy)
    return (array != 0 if kind.name == "BOOL" else array).reshape(shape)


def _unpack(name: str, data: memoryview, shape: list[int]) -> np.ndarray:
    """Each element is a 4-byte little-endian length and its bytes."""
    items: list[bytes] = []
    offset, count = 0, math.prod(shape)
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
        if len(items) > count:
            break
    if len(items) != count:
        found = f"more than {count}" if len(items) > count else str(len(items))
        raise BadRequest(f"input '{name}' has {found} strings, its shape {_shown(shape)} has {count} elements")
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def bytes_of(array: np.ndarray) -> bytes:
    """A tensor's bytes, row-major, little-endian; a copy, so the array may be reused at once."""
    if array.dtype == np.object_:
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return array.tobytes()


def json_of(array: np.ndarray, pause: Callable[[], None] = lambda: None) -> Any:
    """A tensor's flat data for a JSON answer; `pause` is called before each piece where it is long.

    NaN and infinities are written as the tokens NaN, Infinity and -Infinity, as Triton does: JSON has none, and null
    would silently lose which one it was.
    """
    flat = array.ravel()
    if flat.size <= _PIECE_VALUES:
        return _listed(flat)
    pieces: list[bytes] = []
    for start in range(0, flat.size, _PIECE_VALUES):
        pause()
        pieces.append(_encoder.encode(_listed(flat[start : start + _PIECE_VALUES]))[1:-1])
    return msgspec.Raw(b"[%s]" % b",".join(pieces))


def _listed(flat: np.ndarray) -> Any:
    if flat.dtype == np.object_:
        return [item.decode("utf-8", "replace") for item in flat]
    if flat.dtype.kind in "iub":
        return flat.tolist()
    floats = flat.astype(np.float64) if flat.dtype.itemsize == 2 else flat
    values = floats.tolist()
    if np.isfinite(floats).all():
        return values
    return msgspec.Raw(json.dumps(values, separators=(",", ":")).encode())
