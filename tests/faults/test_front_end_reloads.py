"""Models that are loaded anew behind front ends: what was checked, what runs and what is answered are one version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.hostile.wire import Client, json_body, post, repository
from tests.support import fronts
from tests.support.onnx_models import build, place
from tests.support.servers import ADMIN, Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running(repository(), "--front-ends", "2") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def clients_of(server: Server) -> Iterator[fronts.Clients]:
    clients = fronts.Clients(server)
    yield clients
    clients.close()


def test_a_model_is_unloaded_and_loaded_for_all_front_ends_before_the_answer(server, clients_of):
    clients = [client for (client,) in clients_of(1).values()]
    for _ in range(10):
        for name, status in (("unload", 404), ("load", 200)):
            answer = httpx.post(f"{server.url}/v2/repository/models/add_sub/{name}", headers=ADMIN, timeout=60)
            assert answer.status_code == 200
            for client in clients:
                tensors = [
                    {"name": n, "datatype": "INT32", "shape": [1, 16], "data": [3] * 16} for n in ("INPUT0", "INPUT1")
                ]
                reply = client.ask(post("add_sub", httpx.Request("POST", "http://x", json={"inputs": tensors}).content))
                assert reply.status == status, (name, reply)


def scaled(outputs: dict[str, float]) -> Any:
    """A model whose outputs, in this order, are its input X [N, 4] times a number each."""
    nodes = [helper.make_node("Mul", ["X", f"by_{name}"], [name], name=f"scale_{name}") for name in outputs]
    factors = {f"by_{name}": np.array(factor, np.float32) for name, factor in outputs.items()}
    shape = (TensorProto.FLOAT, ["N", 4])
    return build(nodes, {"X": shape}, dict.fromkeys(outputs, shape), factors)


VERSIONS = {1: {"Y": 2.0, "W": 5.0}, 2: {"W": 7.0, "Y": 3.0, "Z": 11.0}}


def test_versions_that_come_and_go_are_never_mixed(tmp_path):
    place(tmp_path, "mix", scaled(VERSIONS[1]))
    stop: list[bool] = []

    def drive(server: Server) -> set[str]:
        seen = set()
        with Client(server.port) as client:
            while not stop:
                reply = client.ask(post("mix", json_body(4.0, width=4)))
                assert reply.status == 200, reply
                answer = reply.json()
                factors = VERSIONS[int(answer["model_version"])]
                values = {output["name"]: output["data"] for output in answer["outputs"]}
                assert values == {name: [4.0 * factor] * 4 for name, factor in factors.items()}
                seen.add(answer["model_version"])
        return seen

    with running(tmp_path, "--front-ends", "2", "--watch-s", "0") as server:
        server.wait_ready("mix")
        with ThreadPoolExecutor(6) as pool:
            drivers = [pool.submit(drive, server) for _ in range(6)]
            try:
                for cycle in range(6):
                    if cycle % 2 == 0:
                        place(tmp_path, "mix", scaled(VERSIONS[2]), version=2)
                    else:
                        shutil.rmtree(tmp_path / "mix" / "2")
                    url = f"{server.url}/v2/repository/models/mix/load"
                    answer = httpx.post(url, headers=ADMIN, timeout=60)
                    assert answer.status_code == 200, answer.text
            finally:
                stop.append(True)
            assert {"1", "2"} == set.union(*(driver.result(60) for driver in drivers))


def test_what_was_loaded_is_what_is_asked_from_the_next_request_on(tmp_path):
    with running(tmp_path, "--front-ends", "2", "--watch-s", "0") as server:
        clients = fronts.Clients(server)
        connections = [client for (client,) in clients(1).values()]
        for cycle in range(10):
            width = 4 + cycle % 2
            shape = (TensorProto.FLOAT, ["N", width])
            place(tmp_path, "w", build([helper.make_node("Neg", ["X"], ["Y"], name="n")], {"X": shape}, {"Y": shape}))
            url = f"{server.url}/v2/repository/models/w/load"
            answer = httpx.post(url, headers=ADMIN, timeout=60)
            assert answer.status_code == 200, answer.text
            for client in connections:
                reply = client.ask(post("w", json_body(1.0, width=width)))
                assert reply.status == 200, reply
                assert reply.json()["outputs"][0]["data"] == [-1.0] * width
        clients.close()
