"""Open-loop load by a small native program: latency counts from when a request was due, whoever was late.

`benchmarks.open_loop` says the same in Python, for rates that Python can keep.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.peers.venvs import cache_folder
from benchmarks.wrk import Expected, Sent

__all__ = ["Arrived", "arrivals", "as_fast_as_answered", "poisson", "program"]

_SOURCE = Path(__file__).parent / "arrivals.cpp"
_RECORD = np.dtype([("latency_s", "<f8"), ("late_s", "<f8"), ("status", "<i4"), ("body_bytes", "<i4")])
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Arrived:
    """Latencies in ms, from the due instant. `late_p99_ms`: how late requests went out, for want of a connection or of
    the program's own turn. `failures`: not 200, of an unexpected length, or never answered. `kept`: some bodies.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    late_p99_ms: float
    failures: int
    kept: tuple[bytes, ...]


def poisson(rate_per_s: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Instants in seconds, float64: gaps are exponential."""
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, max(1, int(rate_per_s * seconds)))
    return np.cumsum(gaps)


def as_fast_as_answered(count: int) -> np.ndarray:
    """All due at once: each connection asks again as soon as it is answered."""
    return np.zeros(count)


def program() -> Path:
    """Compiled once for each state of its source. RuntimeError where there is no compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise RuntimeError("open loops need a C++ compiler: apt-get install -y g++")
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    path = cache_folder() / f"arrivals-{digest}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".made")
        subprocess.run([compiler, "-O2", "-std=c++17", "-o", str(made), str(_SOURCE)], check=True)
        made.rename(path)
    return path


def arrivals(
    base: str, sent: Sequence[Sent], due_s: np.ndarray, folder: Path, connections: int, expected: Expected
) -> Arrived:
    """`due_s`: rising. RuntimeError where the server takes no connection."""
    place = urlsplit(base)
    requests, due, answers = (folder / f"arrivals.{name}" for name in ("requests", "due", "answers"))
    requests.write_bytes(b"".join(_framed(_on_the_wire(place.netloc, one)) for one in sent))
    due.write_bytes(np.asarray(due_s, np.float64).tobytes())
    command = [str(program()), str(place.port), str(connections), str(_TIMEOUT_S)]
    command += [str(requests), str(due), str(expected.every), str(answers)]
    until_s = float(due_s[-1]) + 2 * _TIMEOUT_S
    done = subprocess.run(command, capture_output=True, check=False, timeout=until_s)
    if done.returncode:
        raise RuntimeError(f"the open loop ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return _arrived(np.frombuffer(done.stdout, _RECORD), due_s, expected, _unframed(answers.read_bytes()))


def _arrived(records: np.ndarray, due_s: np.ndarray, expected: Expected, kept: tuple[bytes, ...]) -> Arrived:
    answered = records["latency_s"] >= 0
    sizes = records["body_bytes"]
    sound = answered & (records["status"] == 200) & (sizes >= expected.least_bytes) & (sizes <= expected.most_bytes)
    # who was never answered waited for at least as long as anybody did
    latencies_ms = 1000 * np.where(answered, records["latency_s"], _TIMEOUT_S)
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    ended_s = float(np.max(due_s + records["latency_s"], where=answered, initial=1e-9))
    return Arrived(
        len(records), float(answered.sum()) / ended_s, float(p50), float(p99),
        float(1000 * np.percentile(records["late_s"], 99)), int((~sound).sum()), kept[: expected.keep],
    )  # fmt: skip


def _on_the_wire(host: str, sent: Sent) -> bytes:
    headers = {"Host": host, "Content-Length": str(len(sent.body)), **sent.headers}
    lines = [f"POST {sent.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + sent.body


def _framed(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _unframed(data: bytes) -> tuple[bytes, ...]:
    found = []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        found.append(data[8 : 8 + size])
        data = data[8 + size :]
    return tuple(found)
