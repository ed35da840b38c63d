"""Faults seen through a real server over TCP: who leaves, expires or sends nonsense costs nobody else anything."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from tests.support.onnx_models import build, linear, place
from tests.support.servers import Server, running, until

HELD = 4


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Server]:
    """A server that launches its first batch only when four requests wait: batches form as the test says."""
    place(tmp_path, "linear", linear(width=4, outputs=4, scale=4.0))  # y = x * [1, 2, 3, 4]
    with running(tmp_path, "--delay-scheduler", str(HELD)) as server:
        server.wait_ready("linear")
        yield server


class Client:
    """One connection with one request on the way."""

    def __init__(self, server: Server, value: float, model: str = "linear", **keys: object) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}
        body = json.dumps({"inputs": [tensor], **keys}).encode()
        self.value = value
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def leave(self) -> None:
        self.socket.close()

    def answer(self) -> tuple[int, dict[str, object]]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(65536)
            assert part, "the connection closed without an answer"
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(lines[b"content-length"]):
            body += self.socket.recv(65536)
        self.socket.close()
        return int(head.split(b" ")[1]), json.loads(body)

    def assert_own_rows(self) -> None:
        status, body = self.answer()
        assert status == 200, body
        assert body["outputs"][0]["data"] == [self.value * factor for factor in (1, 2, 3, 4)]  # type: ignore[index]


def metric(server: Server, name: str, **labels: str) -> float:
    """One number of the metrics page."""
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"no {name} with {labels}")


def pending(server: Server) -> float:
    """Requests that wait."""
    return metric(server, "nv_inference_pending_request_count", model="linear")


@pytest.mark.parametrize("leaver", range(3))
def test_a_member_that_leaves_is_not_launched_and_disturbs_nobody(held: Server, leaver: int) -> None:
    clients = [Client(held, value) for value in (1.0, 2.0, 3.0)]
    until(lambda: pending(held) == 3, "three requests waiting")
    clients.pop(leaver).leave()
    until(lambda: pending(held) == 2, "the one who left is out of the queue")
    clients += [Client(held, value) for value in (5.0, 6.0)]
    for client in clients:
        client.assert_own_rows()
    assert metric(held, "nv_inference_count") == HELD
    assert metric(held, "nv_inference_exec_count") == 1
    assert metric(held, "nv_inference_request_failure", reason="CANCELED") == 1


def test_all_members_leave_and_the_next_batch_works(held: Server) -> None:
    for client in [Client(held, value) for value in (1.0, 2.0, 3.0)]:
        client.leave()
    until(lambda: pending(held) == 0, "an empty queue")
    clients = [Client(held, value) for value in (5.0, 6.0, 7.0, 8.0)]
    for client in clients:
        client.assert_own_rows()


def test_an_expired_member_is_answered_503_while_it_still_waits(held: Server) -> None:
    patient = Client(held, 1.0)
    hurried = Client(held, 2.0, parameters={"timeout": 50_000})
    status, body = hurried.answer()
    assert (status, body) == (503, {"error": "Request timeout expired"})
    clients = [patient, *(Client(held, value) for value in (5.0, 6.0, 7.0))]
    for client in clients:
        client.assert_own_rows()


def test_bad_input_costs_its_own_request_only(held: Server) -> None:
    waiting = [Client(held, 1.0), Client(held, 2.0)]
    bad = held.infer("linear", {"x": ("FP32", np.zeros((1, 5)))})
    assert bad.status_code == 400
    assert "unexpected shape for input 'x' for model 'linear'. Expected [-1,4], got [1,5]" in bad.json()["error"]
    for client in [*waiting, Client(held, 3.0), Client(held, 4.0)]:
        client.assert_own_rows()


def test_a_batch_that_raises_fails_its_own_requests_only(tmp_path: Path) -> None:
    """Rows of a length that is no multiple of 4 make the engine raise at run time; it is their shape's fault."""
    model = build(
        [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("ReduceSum", ["r", "axes"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", "T"])},
        {"y": (TensorProto.FLOAT, ["N", "K"])},
        {"shape": np.array([0, -1, 4], np.int64), "axes": np.array([1], np.int64)},
    )
    model.graph.node[1].attribute.append(helper.make_attribute("keepdims", 0))
    place(tmp_path, "quads", model)
    with running(tmp_path, "--delay-scheduler", "3") as server:
        server.wait_ready("quads")
        until(lambda: server.state("quads") == "READY", "ready")
        good = Quads(server, [1.0] * 8)
        bad = [Quads(server, [1.0] * 7), Quads(server, [2.0] * 7)]
        for client in bad:
            status, body = client.answer()
            assert status == 400, body
            assert "cannot run on inputs of this shape: 'x' [7]" in str(body["error"])
        status, body = good.answer()
        assert status == 200, body
        assert body["outputs"][0]["data"] == [2.0] * 4  # type: ignore[index]
        again = server.infer("quads", {"x": ("FP32", np.ones((2, 12)))})
        assert again.json()["outputs"][0]["data"] == [3.0] * 8


class Quads(Client):
    """A request of one row of any length."""

    def __init__(self, server: Server, values: list[float]) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
        body = json.dumps({"inputs": [tensor]}).encode()
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        head = f"POST /v2/models/quads/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)


def test_bodies_held_at_once_are_bounded_and_given_back(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear(width=4, outputs=4, scale=4.0))
    padding = {"padding": "." * 4000}
    with running(tmp_path, "--delay-scheduler", "2", "--max-held-bytes", "6000") as server:
        server.wait_ready("linear")
        first = Client(server, 1.0, **padding)
        until(lambda: pending(server) == 1, "one request waiting")
        status, body = Client(server, 2.0, **padding).answer()
        assert status == 503
        assert "see setting max_held_bytes" in str(body["error"])
        second = Client(server, 3.0)  # a small one fits beside it
        first.assert_own_rows()
        second.assert_own_rows()
        Client(server, 4.0, **padding).assert_own_rows()
        Client(server, 5.0, **padding).leave()
        until(lambda: Client(server, 6.0, **padding).answer()[0] == 200, "room again when the leaver is noticed")


def test_an_index_outside_its_table_is_refused(tmp_path: Path) -> None:
    """OpenVINO would answer zeros for it."""
    table = {"table": np.arange(15, dtype=np.float32).reshape(5, 3)}
    nodes = [helper.make_node("Gather", ["table", "i"], ["y"])]
    place(tmp_path, "rows", build(nodes, {"i": (TensorProto.INT64, ["N", 2])}, {"y": (1, ["N", 2, 3])}, table))
    with running(tmp_path) as server:
        server.wait_ready("rows")
        assert server.infer("rows", {"i": ("INT64", [[4, -5]])}).json()["outputs"][0]["data"] == [12, 13, 14, 0, 1, 2]
        answer = server.infer("rows", {"i": ("INT64", [[0, 5]])})
        assert answer.status_code == 400
        assert "holds 5; expected whole numbers from -5 to 4" in answer.json()["error"]


def test_an_index_that_the_graph_computes_wrongly_costs_its_own_request_only(tmp_path: Path) -> None:
    """Of four requests in one batch, one looks up what is not there; by itself the engine would answer zeros."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["y"], name="words"),
    ]
    table = {"table": np.arange(40, dtype=np.float32) * 2}
    four = (TensorProto.FLOAT, ["N", 4])
    place(tmp_path, "words", build(nodes, {"x": four}, {"y": four}, table))
    with running(tmp_path, "--delay-scheduler", str(HELD)) as server:
        server.wait_ready("words")
        assert server.index()["words", "1"]["reason"] == ""
        clients = [Client(server, value, "words") for value in (3.0, 40.0, 39.0, -40.0)]
        for client in clients:
            status, body = client.answer()
            if client.value == 40:
                assert status == 400
                assert "Gather 'words' looks up an index outside its table" in str(body["error"])
            else:
                assert (status, body["outputs"][0]["data"]) == (200, [client.value % 40 * 2] * 4)  # type: ignore[index]
        assert metric(server, "bitserve_batch_flushes_total", model="words", reason="alone") == 3
        assert metric(server, "nv_inference_request_failure", model="words", reason="BACKEND") == 1
