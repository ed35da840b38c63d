"""What a seeded random client sends: requests that were valid once, and some that never were."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from engines.tensor import BY_NAME
from tests.hostile.wire import post

__all__ = ["Shot", "draw"]


class Shot:
    """Bytes to send on a connection. `whole` promises well-formed HTTP, so that one answer must come."""

    def __init__(self, data: bytes, *, whole: bool) -> None:
        self.data, self.whole = data, whole


_ANY, _INDEX, _SIZE = range(100), range(-10, 10), range(1, 5)
_VARIABLE, _LARGEST = -1, 8
_MODELS: dict[str, list[tuple[str, str, list[int], range]]] = {
    "m": [("X", "FP32", [1, 16], _ANY)],
    "add_sub": [("INPUT0", "INT32", [1, 16], _ANY), ("INPUT1", "INT32", [1, 16], _ANY)],
    "planes": [("X", "FP32", [2, 3, 4], _ANY)],
    "rows": [("i", "INT64", [1, 4], _INDEX)],
    "pictures": [("X", "FP32", [1, 1, _VARIABLE, _VARIABLE], _ANY)],
    "controls": [("X", "FP32", [1, 4], _ANY), ("l", "INT64", [1], range(5)), ("k", "INT64", [1], range(1, 2))],
    "sizes": [
        ("X", "FP32", [1, 1], _ANY), ("shape", "INT64", [2], _SIZE), ("count", "INT64", [1], _SIZE),
        ("V", "FP32", [12], _ANY),
    ],
}  # fmt: skip
"""Inputs: name, datatype, shape (what is variable is from 1 to 8), and the values that are right."""
_ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e400, 1e39, 0.5, float("nan"), float("-inf"), "", "x", "NaN",
    [], {}, [[]], [[1], [2, 3]], ["a"], {"a": {}}, "\ud800", "\u0000", "a" * 5000, 10**100,
]  # fmt: skip
_NUMBERS = [0, -1, -2, -11, 10, 11, 64, 65, 1000, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63)]
_SHAPES: list[Any] = [
    [], [0], [1], [16], [1, 16], [2, 16], [33, 16], [1, 0], [1] * 65, [2**62, 4], [2**61], [-1, 16], [1, 16.0],
    [1, 2, 3], [2**32, 2**32], [10**30], "16", None, [[1, 16]],
]  # fmt: skip
_LENGTHS = ["0", "-1", "1", "99999999999", "9" * 30, "", "x", "1.5", "0x1", " 5", "5 "]
_HEADERS = [
    "Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: br", "Content-Encoding: gzip, gzip",
    "Accept-Encoding: gzip", "Accept-Encoding: deflate;q=x, *;q=9", "Content-Type: text/html", "Expect: nothing",
    "X-Request-Id: \xe9\t", "Inference-Header-Content-Length: 3", "Upgrade: h2c", "Connection: Upgrade",
    "Connection: close", "Transfer-Encoding: identity", "TE: trailers", "Cookie: a", "Authorization: Bearer x",
]  # fmt: skip


def _valid(rng: random.Random) -> tuple[str, dict[str, Any], bytes]:
    """A model, a request for it, and the bytes of its binary tensors."""
    model = rng.choice(list(_MODELS))
    inputs, rest = [], b""
    for name, datatype, dims, right in _MODELS[model]:
        shape = [rng.randint(1, _LARGEST) if dim == _VARIABLE else dim for dim in dims]
        values = [rng.choice(right) if rng.random() < 0.95 else rng.choice(_NUMBERS) for _ in range(math.prod(shape))]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if rng.random() < 0.5:
            data = np.array(values).astype(BY_NAME[datatype].numpy).tobytes()
            data = rng.randbytes(len(data)) if rng.random() < 0.1 else data
            tensor["parameters"] = {"binary_data_size": len(data)}
            rest += data
        else:
            tensor["data"] = values
        inputs.append(tensor)
    request: dict[str, Any] = {"inputs": inputs}
    if rng.random() < 0.3:
        request["outputs"] = [
            {"name": rng.choice(["Y", "OUTPUT0", "R", "Z"]), "parameters": {rng.choice(["binary_data"]): True}}
        ]
    if rng.random() < 0.3:
        request["parameters"] = {rng.choice(["priority", "timeout", "binary_data_output"]): rng.choice([0, 1, True])}
    return model, request, rest


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a document."""
    found = []
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    for key in keys:
        found.append((node, key))
        found += _places(node[key])
    return found


def _spoil(rng: random.Random, request: dict[str, Any]) -> None:
    for _ in range(rng.randrange(1, 4)):
        places = _places(request)
        if not places:
            return
        container, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and key == "datatype":
            container[key] = rng.choice([*BY_NAME, "STRING", ""])
        elif kind <= 2 and "inputs" in request and isinstance(request["inputs"], list) and request["inputs"]:
            tensor = rng.choice(request["inputs"])
            if isinstance(tensor, dict):
                tensor["shape"] = copy.deepcopy(rng.choice(_SHAPES))
        elif kind == 3 and isinstance(container, list):
            container.insert(key, container[key])
        elif kind == 4 and isinstance(container, dict):
            container[rng.choice(["data", "parameters", "name", "classification", "zz", "shared_memory_region"])] = (
                copy.deepcopy(rng.choice(_ODD))
            )
        else:
            container[key] = copy.deepcopy(rng.choice(_ODD))


def _flip(rng: random.Random, data: bytes, most: int = 6) -> bytes:
    """Bytes changed, removed, inserted, doubled or cut."""
    made = bytearray(data)
    for _ in range(rng.randrange(1, most)):
        at = rng.randrange(len(made) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(made):
            made[at] = rng.randrange(256)
        elif kind == 1:
            del made[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            made[at:at] = rng.randbytes(rng.randrange(1, 8))
        elif kind == 3:
            made[at:at] = made[at : at + rng.randrange(1, 50)]
        elif rng.random() < 0.3:
            del made[at:]
    return bytes(made)


def _sent(rng: random.Random, model: str, body: bytes, length: int | str) -> Shot:
    headers = [] if length == len(body) and rng.random() < 0.3 else [f"Inference-Header-Content-Length: {length}"]
    return Shot(post(model, body, headers), whole=True)


def _as_it_is(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    head = json.dumps(request).encode()
    return _sent(rng, model, head + rest, len(head))


def _spoiled_document(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    _spoil(rng, request)
    head = json.dumps(request).encode()
    return _sent(rng, model, head + rest, len(head))


def _spoiled_bytes(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    head = _flip(rng, json.dumps(request).encode())
    return _sent(rng, model, head + rest, len(head))


def _spoiled_sizes(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    head = json.dumps(request).encode()
    length = rng.choice([*_LENGTHS, len(head) + 1, len(head) - 1, rng.randrange(len(head) + len(rest) + 2)])
    body = head + (_flip(rng, rest) if rest else rng.randbytes(rng.randrange(9)))
    return _sent(rng, model, body, length)


def _spoiled_headers(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    head = json.dumps(request).encode()
    body = head + rest
    headers = rng.sample(_HEADERS, rng.randrange(1, 5))
    if rng.random() < 0.5:
        body = rng.choice([gzip.compress, zlib.compress])(body)
        body = _flip(rng, body, 3) if rng.random() < 0.5 else body
    if not any(header.startswith("Inference") for header in headers):
        headers.append(f"Inference-Header-Content-Length: {len(head)}")
    whole = not any(header.startswith("Transfer-Encoding") for header in headers)
    return Shot(post(model, body, headers), whole=whole)


def _random_body(rng: random.Random) -> Shot:
    body = rng.randbytes(rng.randrange(200))
    return _sent(rng, rng.choice([*_MODELS, "nope", "%ff", "m%2f"]), body, rng.choice([*_LENGTHS, len(body)]))


def _nested(rng: random.Random) -> Shot:
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    depth = rng.choice([50, 99, 100, 101, 1000, 50_000])
    nested = opening * depth + "1" + closing * rng.choice([depth, 0, depth + 1])
    _, request, _ = _valid(rng)
    container, key = rng.choice(_places(request))
    container[key] = "@nested@"
    return Shot(post("m", json.dumps(request).replace('"@nested@"', nested).encode()), whole=True)


def _chunked(rng: random.Random) -> Shot:
    model, request, rest = _valid(rng)
    head = json.dumps(request).encode()
    body, parts = head + rest, b""
    while body:
        size = rng.randrange(1, 200)
        parts += b"%x\r\n%s\r\n" % (len(body[:size]), body[:size])
        body = body[size:]
    headers = ["Transfer-Encoding: chunked", f"Inference-Header-Content-Length: {len(head)}"]
    whole = rng.random() < 0.5
    parts += b"0\r\n\r\n"
    return Shot(post(model, parts if whole else _flip(rng, parts), headers, length=False), whole=whole)


def _not_http(rng: random.Random) -> Shot:
    shot = rng.choice([_as_it_is, _spoiled_headers, _chunked])(rng)
    data = rng.randbytes(rng.randrange(1, 300)) if rng.random() < 0.1 else _flip(rng, shot.data)
    return Shot(data, whole=False)


def _cut(rng: random.Random) -> Shot:
    data = _as_it_is(rng).data
    return Shot(data[: rng.randrange(len(data))], whole=False)


_KINDS: list[Callable[[random.Random], Shot]] = [
    _as_it_is, _spoiled_document, _spoiled_document, _spoiled_document, _spoiled_bytes, _spoiled_bytes, _spoiled_sizes,
    _spoiled_headers, _random_body, _nested, _chunked, _not_http, _not_http, _cut,
]  # fmt: skip


def draw(rng: random.Random) -> Shot:
    """The next thing to send."""
    return rng.choice(_KINDS)(rng)
