"""ResNet-18 at 224x224 behind HTTP against the same OpenVINO model called in-process, interleaved in one sitting."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.child import Child, child_of, search
from benchmarks.load import Load, binary_request, peak_memory_mb, wrk
from benchmarks.networks import resnet18
from tests.support.onnx_models import place
from tests.support.servers import running

__all__ = ["run"]

PAIRS = 9
SECONDS = 6
CONNECTIONS = 16
COMMAND = "make bench"


def run() -> dict[str, Any]:
    """All figures of the issue: rows a second, CPU seconds a row, peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = folder / "repository"
        model = place(repository, "resnet18", resnet18())
        with running(repository) as server:  # compiles; the measured server starts from the cache
            server.wait_ready("resnet18")
        with child_of(model) as child:
            searched = search(child)
        best = max(searched, key=lambda found: found["rows_per_s"])
        shape = {key: int(best[key]) for key in ("streams", "threads", "batch")}
        with running(repository) as server, child_of(model) as child:
            server.wait_ready("resnet18")
            loads, limits = _pairs(f"{server.url}/v2/models/resnet18/infer", folder, server.process.pid, child, shape)
            served_mb = peak_memory_mb(psutil.Process(server.process.pid))
            limit_mb = peak_memory_mb(psutil.Process(child.process.pid))
    return _result(searched, shape, loads, limits, served_mb, limit_mb)


def _pairs(
    url: str, folder: Path, server_pid: int, child: Child, shape: dict[str, int]
) -> tuple[list[Load], list[dict[str, float]]]:
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    request = binary_request("image", image, "logits")
    loads, limits = [], []
    for _ in range(PAIRS):
        loads.append(wrk(url, request, folder, psutil.Process(server_pid), CONNECTIONS, SECONDS))
        limits.append(child.measure(**shape, seconds=SECONDS))
    return loads, limits


def _result(
    searched: list[dict[str, float]],
    shape: dict[str, int],
    loads: list[Load],
    limits: list[dict[str, float]],
    served_mb: float,
    limit_mb: float,
) -> dict[str, Any]:
    ratio = statistics.median(a.requests_per_s / b["rows_per_s"] for a, b in zip(loads, limits, strict=True))
    cpu = statistics.median(a.cpu_s_per_request / b["cpu_s_per_row"] for a, b in zip(loads, limits, strict=True))
    rows = statistics.median(load.requests_per_s for load in loads)
    limit = statistics.median(found["rows_per_s"] for found in limits)
    what = "ResNet-18 (random weights) 224x224, binary, 16 connections of wrk"
    at = f"batch {shape['batch']}, {shape['streams']} streams, {shape['threads']} threads"
    return {
        "rows": [
            {
                "what": f"{what}: rows/s against the same model in-process at its best ({at})",
                "measured": f"{ratio:.1%} ({rows:.1f} against {limit:.1f})",
                "goal": ">= 95 %",
                "command": COMMAND,
            },
            {
                "what": "the same: CPU seconds a row against in-process",
                "measured": f"{cpu:.3f}x",
                "goal": "<= 1.05x (either)",
                "command": COMMAND,
            },
            {
                "what": "the same: peak memory above in-process",
                "measured": f"{served_mb - limit_mb:+.0f} MB ({served_mb:.0f} against {limit_mb:.0f})",
                "goal": "<= +80 MB",
                "command": COMMAND,
            },
        ],
        "failures": sum(load.failures for load in loads),
        "pairs": [{"served": asdict(a), "in_process": b} for a, b in zip(loads, limits, strict=True)],
        "search": searched,
    }
