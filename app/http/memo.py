"""Calls of one client differ in their tensors' values alone: what the rest came to is kept for the next."""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from app.http import codec
from app.http.bodies import Body
from app.http.longlist import is_only_data
from app.http.numbers import FlatList
from app.http.wanted import Wanted
from app.serving.errors import InvalidInput
from app.serving.fitting import Call, Fitted, Served, fit
from engines.tensor import datatype

__all__ = ["Memo"]

_Key = bytes | tuple[bytes, bytes]


class _Part(NamedTuple):
    """One input: where it lies behind the JSON part, and what it is."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


class _Prepared(NamedTuple):
    """A call without its arrays. `fitted` of the first such call, without them too."""

    parts: tuple[_Part, ...]
    rest_bytes: int
    call: Call
    fitted: Fitted
    wanted: Wanted

    def filled(self, body: Body, start: int) -> Call:
        """The call whose arrays lie in `body` from `start` on."""
        _, outputs, priority, timeout_us, sequence_id, _ = self.call
        _, rows, shape_key, guarded = self.fitted
        arrays = {name: np.ndarray(shape, dtype, body, start + offset) for name, shape, dtype, offset in self.parts}
        return Call({}, outputs, priority, timeout_us, sequence_id, Fitted(arrays, rows, shape_key, guarded))


class _PreparedJson(NamedTuple):
    """A call of one input in JSON, without its array."""

    name: str
    data: FlatList
    call: Call
    fitted: Fitted
    wanted: Wanted

    def filled(self, values: bytes) -> Call | None:
        """The call whose array is a flat list; None where it is not one of numbers, as many as there were."""
        array = self.data.read(values)
        if array is None:
            return None
        _, outputs, priority, timeout_us, sequence_id, _ = self.call
        _, rows, shape_key, guarded = self.fitted
        return Call(
            {}, outputs, priority, timeout_us, sequence_id, Fitted({self.name: array}, rows, shape_key, guarded)
        )


class Memo:
    """Decodes as `codec.decode` does, whose answer is a pure function of the bytes and the endpoint.

    What is kept of an endpoint goes with it. Clients may send ever new JSON: only what has been seen before is kept,
    and all is dropped where it becomes much.
    """

    most_calls = 1024
    most_bytes = 262_144
    """Of the kept JSON, all endpoints together; what is made of it takes some ten times as much."""
    longest_bytes = 4096
    _most_seen = 8192

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Served, dict[_Key, _Prepared | _PreparedJson]] = WeakKeyDictionary()
        self._seen: set[int] = set()
        self.calls = self.held_bytes = 0
        """Kept since all was dropped the last time, with those whose endpoint has gone since."""

    def decode(self, body: Body, header_length: bytes | None, endpoint: Served) -> tuple[Call, Wanted]:
        """Raises what `codec.decode` raises. What is decoded from memory fits the model, but for its values."""
        if header_length is None:
            return self._decode_json(body, endpoint)
        json_bytes = codec.json_length(header_length, len(body))
        if not 0 < json_bytes <= self.longest_bytes:
            return codec.decode(body, header_length, endpoint)
        document = bytes(body[:json_bytes])
        known = self._of.get(endpoint)
        prepared = known.get(document) if known is not None else None
        if isinstance(prepared, _Prepared) and prepared.rest_bytes == len(body) - json_bytes:
            return prepared.filled(body, json_bytes), prepared.wanted
        call, wanted = codec.decode(body, header_length, endpoint)
        if prepared is None and self._is_known((endpoint, document)):
            wanted = self._keep(endpoint, document, call, wanted, len(body) - json_bytes)
        return call, wanted

    def _is_known(self, what: tuple[Served | bytes, ...]) -> bool:
        mark = hash(what)
        if mark in self._seen:
            return True
        if len(self._seen) >= self._most_seen:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def _keep(self, endpoint: Served, document: bytes, call: Call, wanted: Wanted, rest_bytes: int) -> Wanted:
        """Where it is a plain one: as many bytes behind the JSON as all its arrays have, and it fits the model."""
        arrays = {name: tensor.array for name, tensor in call.inputs.items()}
        plain = all(array.dtype not in (np.object_, np.bool_) for array in arrays.values())
        if not plain or sum(array.nbytes for array in arrays.values()) != rest_bytes:
            return wanted
        fitted = _fitted(endpoint, call)
        if fitted is None:
            return wanted
        parts, offset = [], 0
        for name, array in arrays.items():
            parts.append(_Part(name, array.shape, array.dtype, offset))
            offset += math.prod(array.shape) * array.dtype.itemsize
        order = [spec.name for spec in endpoint.inputs]
        parts.sort(key=lambda part: order.index(part.name))
        kept = wanted.repeated()
        self._put(
            endpoint,
            document,
            _Prepared(tuple(parts), rest_bytes, call._replace(inputs={}), fitted, kept),
            len(document),
        )
        return kept

    def _put(self, endpoint: Served, key: _Key, prepared: _Prepared | _PreparedJson, key_bytes: int) -> None:
        if self.calls >= self.most_calls or self.held_bytes + key_bytes > self.most_bytes:
            self._of.clear()
            self.calls = self.held_bytes = 0
        self._of.setdefault(endpoint, {})[key] = prepared
        self.calls, self.held_bytes = self.calls + 1, self.held_bytes + key_bytes

    def _decode_json(self, body: Body, endpoint: Served) -> tuple[Call, Wanted]:
        cut = _cut(body)
        if cut is None:
            return codec.decode(body, None, endpoint)
        key, values = cut
        known = self._of.get(endpoint)
        prepared = known.get(key) if known is not None else None
        if isinstance(prepared, _PreparedJson):
            filled = prepared.filled(values)
            if filled is not None:
                return filled, prepared.wanted
        call, wanted = codec.decode(body, None, endpoint)  # says what is wrong, too
        if prepared is None and len(key[0]) + len(key[1]) <= self.longest_bytes and self._is_known((endpoint, *key)):
            wanted = self._keep_json(endpoint, key, values, call, wanted)
        return call, wanted

    def _keep_json(
        self, endpoint: Served, key: tuple[bytes, bytes], values: bytes, call: Call, wanted: Wanted
    ) -> Wanted:
        """Where the list is all the data that there is."""
        if len(call.inputs) != 1 or not is_only_data(*key):
            return wanted
        ((name, tensor),) = call.inputs.items()
        fitted = _fitted(endpoint, call)
        if fitted is None or tensor.datatype in ("BF16", "BOOL", "BYTES"):
            return wanted
        data = FlatList(tensor.array.shape, datatype(tensor.datatype))
        if data.read(values) is None:  # the list ends where the data does, or this is no list
            return wanted
        kept = wanted.repeated()
        self._put(
            endpoint, key, _PreparedJson(name, data, call._replace(inputs={}), fitted, kept), len(key[0]) + len(key[1])
        )
        return kept


def _fitted(endpoint: Served, call: Call) -> Fitted | None:
    """Without the arrays; None where it does not fit, which is the gateway's to say."""
    try:
        return fit(endpoint, call)._replace(arrays={})
    except InvalidInput:
        return None


def _cut(body: Body) -> tuple[tuple[bytes, bytes], bytes] | None:
    """The JSON around the first list behind the first "data", and that list; None where there is none.

    The list may be anything: deep, or not even one that ends there.
    """
    if not isinstance(body, bytes):  # it came in many parts: it is large
        return None
    start = body.find(b"[", body.find(b'"data"') + 1)
    end = body.find(b"]", start) + 1
    if start < 0 or end <= start:
        return None
    return (body[:start], body[end:]), body[start:end]
