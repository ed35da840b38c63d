"""Bytes to and from a server: a client that sends exactly what a test says, and the models that answer it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from tests.hostile import controls
from tests.support import onnx_models
from tests.support.servers import TOKEN, Server, free_port, until

__all__ = [
    "AsgiServer", "Client", "Reply", "assert_serves", "binary_body", "cancelled", "in_flight", "json_body", "metric",
    "post", "repository", "short_post", "wait_in_flight",
]  # fmt: skip

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WIDE = 65536


@functools.cache
def repository() -> Path:
    """Models of one process's tests, compiled once: the cache lies in the repository.

    m: Y [N, 16] = 2 X. patient: the same, but its requests wait a second for others; narrow: one at most.
    add_sub: two inputs.
    wide: one float in, 256 KB out. slow: some milliseconds a row, one at a time. planes: two variable dimensions.
    rows: looks up four of ten rows by number. sizes: `count` and `shape` say how large its outputs are, up to 64.
    pictures, controls: see there.
    """
    folder = Path(tempfile.mkdtemp(prefix="wire-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    double = onnx_models.build(
        [helper.make_node("Add", ["X", "X"], ["Y"], name="double")],
        {"X": (FLOAT, ["N", 16])},
        {"Y": (FLOAT, ["N", 16])},
    )
    planes = onnx_models.build(
        [helper.make_node("Relu", ["X"], ["Y"], name="relu")],
        {"X": (FLOAT, ["N", "H", "W"])},
        {"Y": (FLOAT, ["N", "H", "W"])},
    )
    onnx_models.place(folder, "m", double)
    onnx_models.place(folder, "patient", double, config="[batching]\nmax_queue_delay_us = 1_000_000\n")
    queue = "[batching]\nmax_queue_delay_us = 1_000_000\n[queue]\nmax_rows = 1\n"
    onnx_models.place(folder, "narrow", double, config=queue)
    onnx_models.place(folder, "add_sub", onnx_models.add_sub())
    onnx_models.place(folder, "planes", planes)
    onnx_models.place(folder, "wide", _wide())
    onnx_models.place(folder, "rows", _rows())
    onnx_models.place(folder, "sizes", _sizes())
    onnx_models.place(folder, "pictures", controls.pictures())
    onnx_models.place(folder, "controls", controls.controls())
    onnx_models.place(folder, "slow", _slow(), config="[batching]\nmax_batch_size = 1\n")
    return folder


def _wide() -> Any:
    weights = np.arange(WIDE, dtype=np.float32)[None, :]
    return onnx_models.build(
        [helper.make_node("MatMul", ["X", "W"], ["Y"], name="widen")],
        {"X": (FLOAT, ["N", 1])},
        {"Y": (FLOAT, ["N", WIDE])},
        {"W": weights},
    )


def _rows() -> Any:
    table = np.arange(30, dtype=np.float32).reshape(10, 3)
    nodes = [helper.make_node("Gather", ["table", "i"], ["Y"], name="look_up")]
    return onnx_models.build(nodes, {"i": (INT64, ["N", 4])}, {"Y": (FLOAT, ["N", 4, 3])}, {"table": table})


def _sizes() -> Any:
    """Bounded by the graph itself, for the sake of the machine that runs the tests."""
    nodes = [
        helper.make_node("Min", ["shape", "most"], ["spread"], name="bound_shape"),
        helper.make_node("Expand", ["X", "spread"], ["Y"], name="expand"),
        helper.make_node("Min", ["count", "most"], ["bounded"], name="bound_count"),
        helper.make_node("Squeeze", ["bounded", "axis"], ["n"], name="squeeze"),
        helper.make_node("Range", ["zero", "n", "one"], ["R"], name="range"),
        helper.make_node("Concat", ["count", "rest"], ["split"], axis=0, name="split"),
        helper.make_node("Reshape", ["V", "split"], ["Z"], name="reshape"),
    ]
    numbers = {"most": 64, "zero": 0, "one": 1, "axis": [0], "rest": [-1]}
    return onnx_models.build(
        nodes,
        {"X": (FLOAT, [1, 1]), "shape": (INT64, [2]), "count": (INT64, [1]), "V": (FLOAT, [12])},
        {"Y": (FLOAT, ["A", "B"]), "R": (INT64, ["C"]), "Z": (FLOAT, ["D", "E"])},
        {name: np.array(value, np.int64) for name, value in numbers.items()},
    )


def _slow(width: int = 1024, layers: int = 60) -> Any:
    """One matrix over and over: slow to run, small on disk."""
    rng = np.random.default_rng(0)
    weights = {
        "in": rng.standard_normal((4, width), dtype=np.float32),
        "W": rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width)),
    }
    nodes = [helper.make_node("MatMul", ["x", "in"], ["h0"], name="widen")]
    nodes += [helper.make_node("MatMul", [f"h{i}", "W"], [f"h{i + 1}"], name=f"layer{i}") for i in range(layers)]
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}"], ["y"], axes=[1], keepdims=1, name="mean"))
    return onnx_models.build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 1])}, weights)


class AsgiServer(Server):
    """The same application under uvicorn's own HTTP protocol: the handler's raw ASGI face."""

    def __init__(self, repository: Path, *flags: str) -> None:
        port = free_port()
        self._start(
            repository,
            [sys.executable, "-m", "tests.hostile.asgi_server", str(repository), str(port), *flags],
            dict(os.environ),
        )
        self._at(port)


class Reply(NamedTuple):
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message; the body must hold it and nothing else."""
        assert self.headers["content-type"] == "application/json", self
        document = self.json()
        assert set(document) == {"error"}, self
        assert isinstance(document["error"], str)
        assert document["error"], self
        return str(document["error"])


class Client:
    """A connection. Every wait has a limit of time, so that a hang is a failure and not a stop."""

    def __init__(self, port: int, timeout_s: float = 20.0, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave without a word: the server sees a reset, not an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _until(self, count: int) -> bytes:
        while len(self.rest) < count:
            more = self.socket.recv(1 << 20)
            if not more:
                raise ConnectionError(f"the server closed after {self.rest!r:.200}, {count} bytes were expected")
            self.rest += more
        data, self.rest = self.rest[:count], self.rest[count:]
        return data

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self.rest:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(f"the server closed after {self.rest!r:.200}")
            self.rest += more
        return self._until(self.rest.index(b"\r\n\r\n") + 4)

    def read(self, *, head_only: bool = False) -> Reply:
        """The next response; 100 Continue is one too."""
        lines = self._head()[:-4].decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 "), lines[0]
        status = int(lines[0].split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert "transfer-encoding" not in headers, headers
        length = 0 if head_only or status == 100 else int(headers["content-length"])
        return Reply(status, headers, self._until(length))

    def ask(self, data: bytes) -> Reply:
        return self.send(data).read()

    def ended(self) -> bool:
        """Whether the server closes now, having sent nothing more."""
        try:
            return not self.rest and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def post(path: str, body: bytes, headers: Iterable[str] = (), *, length: bool = True, version: str = "1.1") -> bytes:
    """A POST request; `path` may be a model's name, else the admin token is sent along."""
    target = path if path.startswith("/") else f"/v2/models/{path}/infer"
    admin = [f"Authorization: Bearer {TOKEN}"] if path.startswith("/") else []
    lines = [f"POST {target} HTTP/{version}", "Host: test", *admin, *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def json_body(value: float = 1.0, rows: int = 1, name: str = "X", width: int = 16, **keys: Any) -> bytes:
    """A JSON call of one input that holds `value` everywhere."""
    tensor = {"name": name, "datatype": "FP32", "shape": [rows, width], "data": [value] * (rows * width)}
    return json.dumps({"inputs": [tensor], **keys}).encode()


def short_post(model: str = "m", value: float = 1.0, headers: Iterable[str] = (), **keys: Any) -> bytes:
    """A JSON call of `m`, `patient`, `slow` or `wide`."""
    name, width = {"m": ("X", 16), "patient": ("X", 16), "narrow": ("X", 16), "slow": ("x", 4), "wide": ("X", 1)}[model]
    return post(model, json_body(value, name=name, width=width, **keys), headers)


def binary_body(array: np.ndarray, name: str = "X", datatype: str = "FP32", **keys: Any) -> tuple[bytes, str]:
    """A call with one binary input and binary outputs, and its Inference-Header-Content-Length header."""
    data = array.tobytes()
    tensor = {
        "name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(data)}
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}, **keys}).encode()
    return head + data, f"Inference-Header-Content-Length: {len(head)}"


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry the labels."""
    with Client(server.port) as client:
        page = client.ask(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").body.decode()
    total = 0.0
    for line in page.splitlines():
        found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if found and all(f'{key}="{value}"' in found[1] for key, value in labels.items()):
            total += float(found[2])
    return total


def in_flight(server: Server, model: str) -> int:
    """Requests that were accepted and not answered."""
    return int(metric(server, "bitserve_requests_in_flight", model=model))


def cancelled(server: Server, model: str) -> int:
    """Requests that ended because their client left."""
    return int(metric(server, "bitserve_request_duration_seconds_count", model=model, outcome="cancelled"))


def assert_serves(server: Server, value: float = 3.0) -> None:
    """The server is live and gives the right answer to a normal request."""
    with Client(server.port) as client:
        assert client.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n").status == 200
        reply = client.ask(short_post("m", value))
        assert reply.status == 200, reply
        assert reply.json()["outputs"][0]["data"] == [2 * value] * 16


def wait_in_flight(server: Server, model: str, count: int) -> None:
    until(lambda: in_flight(server, model) == count, f"{count} requests of {model} in flight", 30)
