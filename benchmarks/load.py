"""Requests of one body to a real server by wrk, and what such a body is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.wrk import Sent, run_wrk

__all__ = ["Load", "binary_request", "json_request", "peak_memory_mb", "wrk"]


@dataclass(frozen=True)
class Load:
    """What one wrk run saw, and the server's CPU seconds meanwhile."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int
    cpu_s_per_request: float


def binary_request(name: str, array: np.ndarray, output: str, call: str = "") -> tuple[bytes, dict[str, str]]:
    """Body and headers of a call with one binary input and one binary output; `call`: its id, which the answer has."""
    size = {"binary_data_size": array.nbytes}
    head = json.dumps(
        {
            **({"id": call} if call else {}),
            "inputs": [{"name": name, "datatype": "FP32", "shape": list(array.shape), "parameters": size}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + array.tobytes(), headers


def json_request(name: str, array: np.ndarray, call: str = "") -> tuple[bytes, dict[str, str]]:
    """Body and headers of the same call in JSON."""
    tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    body = {**({"id": call} if call else {}), "inputs": [tensor]}
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def wrk(
    url: str, request: tuple[bytes, dict[str, str]], folder: Path, server: psutil.Process, connections: int,
    seconds: int,
) -> Load:  # fmt: skip
    """Run wrk with one thread and one body. RuntimeError where wrk is missing."""
    place = urlsplit(url)

    def cpu_s() -> float:
        times = server.cpu_times()
        return float(times.user + times.system)

    sent = [Sent(place.path, *request)]
    run = run_wrk(f"{place.scheme}://{place.netloc}", sent, folder, cpu_s, connections, seconds)
    return Load(run.requests_per_s, run.p50_ms, run.p99_ms, run.failures, run.cpu_s_per_request)


def peak_memory_mb(process: psutil.Process) -> float:
    """The largest resident memory that a process ever had (VmHWM), in MB of 10^6 bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    if found is None:
        raise RuntimeError("this kernel does not say how much memory a process had at most")
    return int(found[1]) * 1024 / 1e6
