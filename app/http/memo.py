"""Calls of one client differ in their tensors' bytes alone: what their equal JSON part came to is kept for the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from app.http import codec
from app.http.bodies import Body
from app.serving.errors import InvalidInput
from app.serving.fitting import Call, Fitted, Served, fit

__all__ = ["Memo"]

Decode = Callable[[Body, bytes | None, Served], tuple[Call, codec.Wanted]]


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
    wanted: codec.Wanted

    def filled(self, body: Body, start: int) -> Call:
        """The call whose arrays lie in `body` from `start` on."""
        _, outputs, priority, timeout_us, sequence_id, _ = self.call
        _, rows, shape_key, guarded = self.fitted
        arrays = {name: np.ndarray(shape, dtype, body, start + offset) for name, shape, dtype, offset in self.parts}
        return Call({}, outputs, priority, timeout_us, sequence_id, Fitted(arrays, rows, shape_key, guarded))


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
        self._of: WeakKeyDictionary[Served, dict[bytes, _Prepared]] = WeakKeyDictionary()
        self._seen: set[int] = set()
        self.calls = self.held_bytes = 0
        """Kept since all was dropped the last time, with those whose endpoint has gone since."""

    def decode(self, body: Body, header_length: bytes | None, endpoint: Served) -> tuple[Call, codec.Wanted]:
        """Raises what `codec.decode` raises. Binary inputs are decoded from memory, and fit."""
        json_bytes = 0 if header_length is None else codec.json_length(header_length, len(body))
        if not 0 < json_bytes <= self.longest_bytes:
            return codec.decode(body, header_length, endpoint)
        document = bytes(body[:json_bytes])
        known = self._of.get(endpoint)
        prepared = known.get(document) if known is not None else None
        if prepared is not None and prepared.rest_bytes == len(body) - json_bytes:
            return prepared.filled(body, json_bytes), prepared.wanted
        call, wanted = codec.decode(body, header_length, endpoint)
        if prepared is None and self._is_known((endpoint, document)):
            wanted = self._keep(endpoint, document, call, wanted, len(body) - json_bytes)
        return call, wanted

    def _is_known(self, what: tuple[Served, bytes]) -> bool:
        mark = hash(what)
        if mark in self._seen:
            return True
        if len(self._seen) >= self._most_seen:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def _keep(
        self, endpoint: Served, document: bytes, call: Call, wanted: codec.Wanted, rest_bytes: int
    ) -> codec.Wanted:
        """Where it is a plain one: as many bytes behind the JSON as all its arrays have, and it fits the model."""
        arrays = {name: tensor.array for name, tensor in call.inputs.items()}
        plain = all(array.dtype not in (np.object_, np.bool_) for array in arrays.values())
        if not plain or sum(array.nbytes for array in arrays.values()) != rest_bytes:
            return wanted
        try:
            fitted = fit(endpoint, call)
        except InvalidInput:  # the gateway says so
            return wanted
        if self.calls >= self.most_calls or self.held_bytes + len(document) > self.most_bytes:
            self._of.clear()
            self.calls = self.held_bytes = 0
        parts, offset = [], 0
        for name, array in arrays.items():
            parts.append(_Part(name, array.shape, array.dtype, offset))
            offset += math.prod(array.shape) * array.dtype.itemsize
        order = list(fitted.arrays)
        parts.sort(key=lambda part: order.index(part.name))
        kept = codec.repeated(wanted)
        self._of.setdefault(endpoint, {})[document] = _Prepared(
            tuple(parts), rest_bytes, call._replace(inputs={}), fitted._replace(arrays={}), kept
        )
        self.calls, self.held_bytes = self.calls + 1, self.held_bytes + len(document)
        return kept
