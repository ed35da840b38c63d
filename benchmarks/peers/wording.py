"""How a question is put to a server and its answer read: the Open Inference Protocol, and peers' own JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.load import binary_request, json_request
from benchmarks.peers.models import Served
from benchmarks.wrk import Sent

__all__ = ["BINARY", "JSON", "Bare", "Binary", "Json", "Plain", "Wording"]

BINARY, JSON = "binary", "JSON"
_JSON_BODY = {"Content-Type": "application/json"}


class Wording(Protocol):
    """One form of request and answer."""

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        """The request that asks this; the number is its id."""
        ...

    def read(self, served: Served, rows: int, body: bytes) -> tuple[int | None, np.ndarray]:
        """Which question is answered, None where the server does not say, and how: [rows, classes]."""
        ...


class Binary:
    """The protocol's extension for tensors as bytes."""

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        """JSON, then the tensor."""
        return Sent(_path(served), *binary_request(served.input, array, served.output, str(number)))

    def read(self, served: Served, rows: int, body: bytes) -> tuple[int, np.ndarray]:
        """The tensor are the last bytes, as many as it must have."""
        size = 4 * rows * served.classes
        head, tensor = json.loads(body[:-size]), body[-size:]
        said = head["outputs"][0]
        if said["shape"] != [rows, served.classes] or said["parameters"]["binary_data_size"] != size:
            raise ValueError(f"an answer of shape {said['shape']}, not {[rows, served.classes]}")
        return int(head["id"]), np.frombuffer(tensor, np.float32).reshape(rows, served.classes)


class Json:
    """The protocol's tensors as JSON."""

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        """Flat, in row-major order."""
        return Sent(_path(served), *json_request(served.input, array, str(number)))

    def read(self, served: Served, rows: int, body: bytes) -> tuple[int, np.ndarray]:
        """Flat or nested."""
        said = json.loads(body)
        tensor = said["outputs"][0]
        return int(said["id"]), np.array(tensor["data"], np.float32).reshape(tensor["shape"])


@dataclass(frozen=True)
class Plain:
    """{"id", "x"} is answered {"id", "y"}, at a path for one model."""

    path: str

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        """Rows nested, as a handler takes them."""
        return Sent(self.path, json.dumps({"id": str(number), "x": array.tolist()}).encode(), _JSON_BODY)

    def read(self, served: Served, rows: int, body: bytes) -> tuple[int, np.ndarray]:
        """Nested again."""
        said = json.loads(body)
        return int(said["id"]), np.array(said["y"], np.float32)


@dataclass(frozen=True)
class Bare:
    """{"x"} is answered with the rows: nothing says to whom they belong, so they are held against all answers."""

    path: str

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        """Rows nested."""
        return Sent(self.path, json.dumps({"x": array.tolist()}).encode(), _JSON_BODY)

    def read(self, served: Served, rows: int, body: bytes) -> tuple[None, np.ndarray]:
        """Nested again."""
        return None, np.array(json.loads(body), np.float32)


def _path(served: Served) -> str:
    return f"/v2/models/{served.name}/infer"
