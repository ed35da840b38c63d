"""The whole server on a simulated GPU: what runs there, and what a lost device and too little memory do to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.simulated.models import planned, scaled_sums
from tests.support.onnx_models import place
from tests.support.servers import Server, until

MODEL = scaled_sums()


def started(repository: Path, *flags: str, **faults: Any) -> Server:
    return Server(
        repository,
        *flags,
        on_gpu=True,
        env={"SIMULATED_GPU_ORDERLY": "1", "SIMULATED_GPU": json.dumps({"slowest_s": 0.0002, **faults})},
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place(tmp_path / "models", "sums", MODEL.model)
    return tmp_path / "models"


@pytest.fixture(params=[(), ("--front-ends", "2")], ids=["one process", "front ends"])
def server(repository: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = started(repository, *request.param, lost_file=str(repository.parent / "lost"))
    server.wait_ready()
    yield server
    server.stop()


def asked(server: Server, seed: int, model: str = "sums") -> tuple[np.ndarray, httpx.Response]:
    x = np.random.default_rng(seed).standard_normal((1 + seed % 5, 4), dtype=np.float32)
    return x, server.infer(model, {"x": ("FP32", x)})


def health(server: Server, what: str) -> int:
    return httpx.get(f"{server.url}/v2/health/{what}", timeout=10, verify=False).status_code


def test_rows_of_many_clients_share_batches_and_each_gets_its_own(server: Server) -> None:
    config = httpx.get(f"{server.url}/v2/models/sums/config", timeout=10, verify=False).json()
    assert (config["backend"], config["instance_group"][0]["kind"]) == ("tensorrt", "KIND_GPU")
    with ThreadPoolExecutor(16) as pool:
        for x, answer in pool.map(lambda seed: asked(server, seed), range(300)):
            assert answer.status_code == 200, answer.text
            data = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(-1, 2)
            np.testing.assert_allclose(data, planned(MODEL, x), rtol=0, atol=5 * 32 * 2.0**-24)


def test_a_lost_device_is_told_to_clients_then_by_readiness_then_by_liveness(server: Server) -> None:
    assert asked(server, 1)[1].status_code == 200
    assert (health(server, "ready"), health(server, "live")) == (200, 200)
    (server.repository.parent / "lost").touch()
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for _, answer in pool.map(lambda seed: asked(server, seed), range(40))]
    assert {answer.status_code for answer in answers} == {503}
    assert "must be started anew" in answers[0].json()["error"]
    until(lambda: health(server, "ready") == 503, "not ready")
    until(lambda: health(server, "live") == 503, "not live")
    assert server.stop() == 0


def test_a_model_that_the_memory_is_too_small_for_says_the_sizes_and_what_serves_goes_on(repository: Path) -> None:
    place(repository, "wide", scaled_sums(width=200_000).model)
    server = started(repository, most_bytes=1_000_000)
    try:
        until(lambda: server.state("wide") == "UNAVAILABLE" and server.state("sums") == "READY", "both settled")
        said = server.index()["wide", "1"]["reason"]
        assert "1600008 bytes" in said
        assert "are free" in said
        assert asked(server, 3)[1].status_code == 200
        assert health(server, "ready") == 200
    finally:
        server.stop()
