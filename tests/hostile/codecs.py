"""Endpoints that only carry specifications, and requests for them: what the codec's tests need, without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.http import codec
from app.http.wanted import Wanted
from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.fitting import Call
from app.serving.limits import ModelOptions
from engines.tensor import BY_NAME, TensorSpec
from tests.support.fakes import HeldLoop, HeldSession

__all__ = ["call", "decode_one", "encode", "endpoint", "request", "tensor"]


def endpoint(
    inputs: Sequence[TensorSpec] = (TensorSpec("x", "FP32", (-1, 4), 0),),
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "FP32", (-1, 4), 0),),
    labels: Mapping[str, tuple[str, ...]] | None = None,
) -> Endpoint:
    device = Device(HeldLoop(), 1)
    return Endpoint("m", 1, inputs, outputs, HeldSession(), ModelOptions(labels=labels or {}), device)


def tensor(
    data: Any = (1, 2, 3, 4), shape: Sequence[int] = (1, 4), datatype: str = "FP32", **keys: Any
) -> dict[str, Any]:
    """One input of a request; `data` None leaves it out."""
    made = {"name": "x", "shape": shape, "datatype": datatype, **keys}
    return made if data is None else {**made, "data": data}


def request(*inputs: Any, **keys: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **keys}).encode()


def call(body: bytes, header: bytes | None = None, at: Endpoint | None = None) -> tuple[Call, Wanted]:
    return codec.decode(body, header, at or endpoint())


def decode_one(data: Any, shape: Sequence[int], datatype: str = "FP32") -> np.ndarray:
    """The array that JSON data becomes; `data` may be text that json would not write."""
    if isinstance(data, str):
        body = request(tensor("@", shape, datatype)).replace(b'"@"', data.encode())
    else:
        body = request(tensor(data, shape, datatype))
    array = call(body)[0].inputs["x"].array
    assert array.dtype == BY_NAME[datatype].numpy
    return array


def encode(array: np.ndarray, datatype: str, *, binary: bool, batch_axis: int | None = 0, **wanted: Any) -> Any:
    """One output's answer: (its description, its bytes or None)."""
    spec = TensorSpec("y", datatype, (-1,) * array.ndim, batch_axis)
    how = Wanted("", binary, {}, wanted.pop("classes", {}))
    body, json_bytes = codec.encode({"y": array}, how, endpoint(outputs=[spec], **wanted))
    head = json.loads(body if json_bytes is None else body[:json_bytes])
    return head["outputs"][0], None if json_bytes is None else body[json_bytes:]
