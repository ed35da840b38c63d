"""wrk beside a real server: requests of one body, over loopback only, bounded in time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

__all__ = ["Load", "binary_request", "json_request", "peak_memory_mb", "wrk"]


@dataclass(frozen=True)
class Load:
    """What one wrk run saw, and the server's CPU seconds meanwhile."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int
    cpu_s_per_request: float


def binary_request(name: str, array: np.ndarray, output: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a call with one binary input and one binary output."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + array.tobytes(), headers


def json_request(name: str, array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the same call in JSON."""
    tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}


def wrk(
    url: str,
    request: tuple[bytes, dict[str, str]],
    folder: Path,
    server: psutil.Process,
    connections: int,
    seconds: int,
) -> Load:
    """Run wrk with one thread. RuntimeError where wrk is missing."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: apt-get install -y wrk")
    body, headers = request
    (folder / "body.bin").write_bytes(body)
    lines = [
        'wrk.method = "POST"',
        f'local file = io.open("{folder / "body.bin"}", "rb")',
        'wrk.body = file:read("*a")',
        *(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()),
    ]
    (folder / "request.lua").write_text("\n".join(lines))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    before = server.cpu_times()
    said = subprocess.run(
        [*command, "-s", str(folder / "request.lua"), url], capture_output=True, text=True, check=True
    ).stdout
    after = server.cpu_times()
    count = int(_find(r"(\d+) requests in", said))
    cpu_s = after.user + after.system - before.user - before.system
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    return Load(
        float(_find(r"Requests/sec:\s+([\d.]+)", said)),
        _milliseconds(_find(r"50%\s+([\d.]+\w+)", said)),
        _milliseconds(_find(r"99%\s+([\d.]+\w+)", said)),
        (int(failed[1]) if failed else 0) + (sum(map(int, broken.groups())) if broken else 0),
        cpu_s / max(1, count),
    )


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk's output has no {pattern!r}: {text[-500:]}")
    return found[1]


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def peak_memory_mb(process: psutil.Process) -> float:
    """The largest resident memory that a process ever had (VmHWM), in MB of 10^6 bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(_find(r"VmHWM:\s+(\d+) kB", status)) * 1024 / 1e6
