"""A build of ResNet-50's size: how long, how much memory, and what a model that serves meanwhile feels of it."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.load import binary_request, wrk
from benchmarks.networks import resnet18, resnet50
from benchmarks.open_loop import OpenLoad, open_loop
from tests.support.onnx_models import place
from tests.support.servers import ADMIN, Server, running
from tests.support.uploads import build_of, ended, send

__all__ = ["run"]

ROUNDS = 3
SECONDS = 10.0


def run() -> dict[str, Any]:
    """Builds alone first; then load at half of capacity, with and without a build beside it, interleaved."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place(folder / "repository", "resnet18", resnet18())
        with running(folder / "repository") as server:
            server.wait_ready("resnet18")
            reports = [_report(server, _resnet50(seed)) for seed in range(3)]
            capacity, rounds = _beside_builds(server, folder)
    build_s = statistics.median(report["build_s"] for report in reports)
    memory_mb = max(report["peak_memory_bytes"] for report in reports) / 1e6
    ratios = [busy.p99_ms / idle.p99_ms for idle, busy in rounds]
    failures = sum(load.failures for pair in rounds for load in pair)
    idle_ms, busy_ms = (statistics.median(pair[i].p99_ms for pair in rounds) for i in (0, 1))
    rows = [
        _row("build of ResNet-50 (random weights), with all its checks", f"{build_s:.1f} s", "< 20 s"),
        _row("the same: peak memory", f"{memory_mb:.0f} MB", "< 2 GB"),
        _row(
            f"p99 of ResNet-18 at half capacity ({capacity / 2:.0f} requests/s), ResNet-50 being built, against alone",
            f"{statistics.median(ratios):.2f}x ({busy_ms:.0f} against {idle_ms:.0f} ms, {failures} failures)", "< 1.5x",
        ),
    ]  # fmt: skip
    loads = [{"idle": asdict(idle), "during a build": asdict(busy)} for idle, busy in rounds]
    return {"rows": rows, "rounds": loads, "stages_s": [report["stages_s"] for report in reports]}


def _row(what: str, measured: str, goal: str) -> dict[str, str]:
    return {"what": what, "measured": measured, "goal": goal, "command": "make bench"}


def _resnet50(seed: int) -> bytes:
    """Other bytes for each seed, or the second would not be built."""
    model = resnet50()
    model.doc_string = str(seed)
    data: bytes = model.SerializeToString()
    return data


def _report(server: Server, data: bytes) -> dict[str, Any]:
    done = ended(server, send(server, "resnet50", data))
    assert done["state"] == "succeeded", done["error"]
    found: dict[str, Any] = httpx.get(f"{server.url}{done['report']}").json()
    return found


def _beside_builds(server: Server, folder: Path) -> tuple[float, list[tuple[OpenLoad, OpenLoad]]]:
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    request = binary_request("image", image, "logits")
    url = f"{server.url}/v2/models/resnet18/infer"
    process = psutil.Process(server.process.pid)
    capacity = statistics.median(wrk(url, request, folder, process, 16, 5).requests_per_s for _ in range(3))
    rounds = []
    for seed in range(ROUNDS):
        idle = open_loop(url, request, capacity / 2, SECONDS)
        build = send(server, "resnet50", _resnet50(100 + seed))
        busy = open_loop(url, request, capacity / 2, SECONDS)
        assert build_of(server, build)["state"] == "running", "the build lasts longer than the load"
        httpx.delete(f"{server.url}{build.headers['location']}", headers=ADMIN).raise_for_status()
        rounds.append((idle, busy))
    return capacity, rounds
