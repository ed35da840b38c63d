"""NVIDIA's perf_analyzer, unmodified, against a real server: every way to send, and every answer checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conformance.tensors import weights
from tests.support import onnx_models
from tests.support.servers import Server, running
from tests.tools import perf_analyzer

LOAD = ["--concurrency-range", "2"]
WINDOWS = ["--measurement-interval", "500", "-s", "999"]  # stable by definition: it ends after three windows
JSON = ["--input-tensor-format", "json", "--output-tensor-format", "json"]
ROWS = np.random.default_rng(0).integers(-4000, 4000, (7, 16)) / 1000 + 0.0001  # no integers: it takes only 1.5, not 1


@pytest.fixture(scope="module", autouse=True)
def tool(request: pytest.FixtureRequest) -> None:
    """The real tool, at its checked version; skips where it cannot be installed."""
    if request.config.getoption("v2_server", None):
        pytest.skip("this measures a server of its own")
    try:
        perf_analyzer.ensure()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("perf")
    onnx_models.place(repository, "linear", onnx_models.linear())
    with running(repository, "--cache", str(tmp_path_factory.getbasetemp() / "plans")) as server:
        server.wait_ready()
        yield server


def _statistics(server: Server) -> dict[str, Any]:
    entry: dict[str, Any] = httpx.get(f"{server.url}/v2/models/linear/stats").json()["model_stats"][0]
    return entry


@pytest.mark.parametrize(
    "options",
    [
        LOAD,
        [*LOAD, *JSON],
        [*LOAD, "--async"],
        [*LOAD, "-b", "4"],
        [*LOAD, *JSON, "-b", "4", "--async", "-x", "1"],
        ["--request-rate-range", "200"],
        ["--request-rate-range", "200", "--request-distribution", "poisson", "--async", "-b", "4"],
    ],
    ids=" ".join,
)
def test_every_answer_is_right(server: Server, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"data": [{"x": row} for row in ROWS.tolist()]}))
    files = ["--input-data", str(tmp_path / "data.json"), "--profile-export-file", str(tmp_path / "profile.json")]
    before = _statistics(server)
    shown = perf_analyzer.run(
        [*options, *WINDOWS, *files, "-m", "linear", "-u", f"127.0.0.1:{server.port}", "-i", "http"], timeout_s=60
    )
    assert float(re.findall(r"throughput: ([\d.]+) infer/sec", shown)[-1]) > 0
    assert "Server:" in shown  # it read our statistics
    answered = _check_answers(json.loads((tmp_path / "profile.json").read_text()), 4 if "-b" in options else 1)
    after = _statistics(server)
    counts = [entry["inference_stats"]["success"]["count"] for entry in (before, after)]
    assert counts[1] - counts[0] >= answered
    assert before["inference_stats"]["fail"] == after["inference_stats"]["fail"]


def _check_answers(profile: dict[str, Any], rows: int) -> int:
    """Every answer of an export against x @ W; how many there were. It holds the first row of a batch's inputs only."""
    requests = [request for experiment in profile["experiments"] for request in experiment["requests"]]
    expected = ROWS @ weights()
    for request in requests:
        first = int(np.argmin(np.abs(ROWS - np.array(request["request_inputs"]["x"])).sum(axis=1)))
        y = np.array(request["response_outputs"][0]["y"], np.float32).reshape(-1, 4)
        right = expected[(first + np.arange(rows)) % len(ROWS)]
        np.testing.assert_allclose(y, right, atol=1e-4)  # 4 float32 terms below 4, written with 6 digits
    assert requests
    return len(requests)


def test_random_bits_as_input_are_no_failure(server: Server) -> None:
    shown = perf_analyzer.run(
        [*LOAD, *WINDOWS, "-m", "linear", "-u", f"127.0.0.1:{server.port}", "-i", "http"], timeout_s=60
    )
    assert "Failed" not in shown


def test_an_unknown_model_is_told_in_the_servers_words(server: Server) -> None:
    with pytest.raises(RuntimeError, match="unknown model: 'nope' is not found"):
        perf_analyzer.run(["-m", "nope", "-u", f"127.0.0.1:{server.port}", "-i", "http"], timeout_s=60)
