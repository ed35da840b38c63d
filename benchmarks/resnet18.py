"""ResNet-18 at 224x224 behind HTTP against the same OpenVINO model called in-process, interleaved in one sitting."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.load import Load, binary_request, peak_memory_mb, wrk
from benchmarks.networks import resnet18
from engines.hardware import usable_threads
from tests.support.onnx_models import place
from tests.support.servers import running

__all__ = ["run"]

PAIRS = 9
SECONDS = 6
CONNECTIONS = 16
COMMAND = "make bench"


class _Child:
    """The in-process twin, in a process of its own so that memory and CPU time are its own."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inprocess", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, streams: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"streams": streams, "threads": threads, "batch": batch, "seconds": seconds}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@contextmanager
def _child(model: Path) -> Iterator[_Child]:
    child = _Child(model)
    try:
        yield child
    finally:
        child.close()


def run() -> dict[str, Any]:
    """All figures of the issue: rows a second, CPU seconds a row, peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = folder / "repository"
        model = place(repository, "resnet18", resnet18())
        with running(repository) as server:  # compiles; the measured server starts from the cache
            server.wait_ready("resnet18")
        with _child(model) as child:
            search = _search(child)
        best = max(search, key=lambda found: found["rows_per_s"])
        shape = {key: int(best[key]) for key in ("streams", "threads", "batch")}
        with running(repository) as server, _child(model) as child:
            server.wait_ready("resnet18")
            loads, limits = _pairs(f"{server.url}/v2/models/resnet18/infer", folder, server.process.pid, child, shape)
            served_mb = peak_memory_mb(psutil.Process(server.process.pid))
            limit_mb = peak_memory_mb(psutil.Process(child.process.pid))
    return _result(search, shape, loads, limits, served_mb, limit_mb)


def _search(child: _Child) -> list[dict[str, float]]:
    """Batch, streams and threads of the in-process run: the best of this grid is the limit."""
    threads = usable_threads()
    found = []
    for (streams, count), batch in itertools.product({(1, threads), (threads, threads)}, (1, 2, 4, 8, 16, 32)):
        speed = max(child.measure(streams, count, batch, 2)["rows_per_s"] for _ in range(2))
        found.append({"streams": streams, "threads": count, "batch": batch, "rows_per_s": speed})
    return found


def _pairs(
    url: str, folder: Path, server_pid: int, child: _Child, shape: dict[str, int]
) -> tuple[list[Load], list[dict[str, float]]]:
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    request = binary_request("image", image, "logits")
    loads, limits = [], []
    for _ in range(PAIRS):
        loads.append(wrk(url, request, folder, psutil.Process(server_pid), CONNECTIONS, SECONDS))
        limits.append(child.measure(**shape, seconds=SECONDS))
    return loads, limits


def _result(
    search: list[dict[str, float]],
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
        "search": search,
    }
