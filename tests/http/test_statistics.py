"""What `/stats` says of a version after known calls: exact counts, and durations that add up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.servers import Server, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One whose counters nobody else moves."""
    onnx_models.place(tmp_path, "linear", onnx_models.linear())
    with running(tmp_path) as server:
        server.wait_ready("linear")
        yield server


def status(server: Server, rows: int) -> int:
    return server.infer("linear", {"x": ("FP32", np.ones((rows, 16)))}).status_code


def test_statistics_are_exact(server: Server) -> None:
    started_ms = time.time_ns() // 1_000_000
    assert [status(server, rows) for rows in (1, 2, 2, 3, 33)] == [200, 200, 200, 200, 400]
    entry = httpx.get(f"{server.url}/v2/models/linear/versions/1/stats").json()["model_stats"][0]
    stats = entry["inference_stats"]
    assert (entry["name"], entry["version"], entry["response_stats"]) == ("linear", "1", {})
    assert (entry["inference_count"], entry["execution_count"]) == (8, 4)
    assert started_ms <= entry["last_inference"] <= time.time_ns() // 1_000_000
    counts = {name: duration["count"] for name, duration in stats.items()}
    assert counts == {
        "success": 4, "fail": 1, "queue": 4, "compute_input": 4, "compute_infer": 4, "compute_output": 4,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in entry["batch_stats"]] == [(1, 1), (2, 2), (3, 1)]
    for phase in ("compute_input", "compute_infer", "compute_output"):
        assert stats[phase]["ns"] == sum(batch[phase]["ns"] for batch in entry["batch_stats"]) > 0
    assert stats["success"]["ns"] >= stats["queue"]["ns"] + sum(
        stats[f"compute_{phase}"]["ns"] for phase in ("input", "infer", "output")
    )
    assert set(entry["memory_usage"][0]) == {"type", "id", "byte_size"}
