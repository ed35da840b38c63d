"""The requests of a run as bytes, head and body, made before it: other rows in each, in rotation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.bench.errors import BenchFailed
from app.bench.target import Target, Tensor
from app.http.tensors import bytes_of
from engines.tensor import datatype

__all__ = ["made"]

_MOST = 64
_MOST_BYTES = 64 * 1024 * 1024
"""Of all requests together, unless two are more."""


def made(
    target: Target, arrays: Mapping[str, np.ndarray], rows: int, *, host: str, headers: Sequence[tuple[str, str]],
    binary: bool,
) -> list[bytes]:  # fmt: skip
    """Requests over `arrays`, the values of each input; those with rows may have any number of them.

    Request i takes `rows` rows from the i-th window on, around the end. Raises BenchFailed where JSON cannot hold them.
    """
    held = {tensor.name: arrays[tensor.name] for tensor in target.inputs}
    with_rows = [held[tensor.name].shape[0] for tensor in target.inputs if tensor.has_rows]
    distinct = min(with_rows, default=1)
    first = _request(target, _window(target, held, 0, rows), host, headers, binary)
    count = min(distinct, _MOST, max(2, _MOST_BYTES // len(first)))
    step = rows if distinct >= rows * count else 1
    return [
        first,
        *(
            _request(target, _window(target, held, number * step, rows), host, headers, binary)
            for number in range(1, count)
        ),
    ]


def _window(target: Target, held: Mapping[str, np.ndarray], begin: int, rows: int) -> dict[str, np.ndarray]:
    return {
        tensor.name: np.take(held[tensor.name], np.arange(begin, begin + rows), axis=0, mode="wrap")
        if tensor.has_rows
        else held[tensor.name]
        for tensor in target.inputs
    }


def _request(
    target: Target, arrays: Mapping[str, np.ndarray], host: str, headers: Sequence[tuple[str, str]], binary: bool
) -> bytes:
    document: dict[str, Any] = {"inputs": [], "parameters": {"binary_data_output": binary}}
    parts: list[bytes] = []
    for tensor in target.inputs:
        array = arrays[tensor.name]
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if binary:
            parts.append(bytes_of(array))
            said["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            said["data"] = _listed(tensor, array)
        document["inputs"].append(said)
    head = json.dumps(document, separators=(",", ":")).encode()
    lines = [f"POST {target.path}/infer HTTP/1.1", f"Host: {host}"]
    if binary:
        lines += ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(head)}"]
    else:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(head) + sum(map(len, parts))}", "", ""]
    return b"".join(["\r\n".join(lines).encode("latin-1"), head, *parts])


def _listed(tensor: Tensor, array: np.ndarray) -> list[Any]:
    flat = array.ravel()
    kind = datatype(tensor.datatype)
    if kind.name == "BYTES":
        try:
            return [item.decode() for item in flat]
        except UnicodeDecodeError as error:
            raise BenchFailed(
                f"input {tensor.name!r} holds bytes that are no UTF-8; send them with --binary"
            ) from error
    if kind.is_float and not np.isfinite(flat.astype(np.float64)).all():
        raise BenchFailed(f"input {tensor.name!r} holds NaN or infinity, which JSON has not; send them with --binary")
    listed: list[Any] = (flat.astype(np.float64) if kind.is_float else flat).tolist()
    return listed
