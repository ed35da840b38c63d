"""The letter MLP behind HTTP: requests a second and latency of a model so small that the server is what is measured."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.load import binary_request, json_request, wrk
from tests.support.servers import ROOT, running

__all__ = ["run"]

ROUNDS = 5
SECONDS = 4


def run() -> dict[str, Any]:
    """JSON and binary at 16 and 64 connections, interleaved, medians."""
    row = np.arange(16, dtype=np.float32)[np.newaxis]
    requests = {"binary": binary_request("features", row, "logits"), "JSON": json_request("features", row)}
    cases = [(kind, connections) for kind in requests for connections in (16, 64)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "model_repo" / "letter_mlp", folder / "repository" / "letter_mlp")
        with running(folder / "repository") as server:
            server.wait_ready("letter_mlp")
            process = psutil.Process(server.process.pid)
            url = f"{server.url}/v2/models/letter_mlp/infer"
            loads = [
                (kind, connections, wrk(url, requests[kind], folder, process, connections, SECONDS))
                for _ in range(ROUNDS)
                for kind, connections in cases
            ]
    rows = []
    for kind, connections in cases:
        found = [load for k, c, load in loads if (k, c) == (kind, connections)]
        speed = statistics.median(load.requests_per_s for load in found)
        p50, p99 = (statistics.median(getattr(load, key) for load in found) for key in ("p50_ms", "p99_ms"))
        rows.append(
            {
                "what": f"letter MLP [1,16], {kind}, {connections} connections of wrk",
                "measured": f"{speed:.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms",
                "goal": "first figure",
                "command": "make bench",
            }
        )
    return {"rows": rows, "rounds": [{"kind": k, "connections": c, **asdict(load)} for k, c, load in loads]}
