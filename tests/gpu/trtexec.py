"""`python -m tests.gpu.trtexec --loadEngine=... --shapes=...`: in the place of NVIDIA's program, of simulated plans.

It takes the flags that are given to that one, and no others; says what it measured in that one's words.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu

_WITH_VALUE, _WITHOUT = {"loadEngine", "shapes", "duration"}, {"useCudaGraph", "exposeDMA"}


class _Logger(trt.ILogger):
    def log(self, severity: object, msg: str) -> None:
        sys.stdout.write(f"[E] {msg}\n")


def main(arguments: list[str]) -> None:
    given: dict[str, str] = {}
    for flag in arguments:
        name, equals, value = flag.removeprefix("--").partition("=")
        if name not in (_WITH_VALUE if equals else _WITHOUT) or not flag.startswith("--"):
            sys.exit(f"[E] Unknown option: {flag}")
        given[name] = value
    gpu = SimulatedGpu(Faults(slowest_s=0))
    gpu.attach()
    engine = trt.Runtime(_Logger()).deserialize_cuda_engine(Path(given["loadEngine"]).read_bytes())
    if engine is None:
        sys.exit("[E] Engine could not be created")
    shapes = {name: tuple(map(int, size.split("x"))) for name, size in _pairs(given["shapes"])}
    inputs = {name: np.zeros(shape, engine.dtype(name)) for name, shape in shapes.items()}
    took_ms, end = [], time.perf_counter() + 0.01 * int(given["duration"])
    while time.perf_counter() < end or not took_ms:
        begun = time.perf_counter()
        engine.run(inputs)
        took_ms.append((time.perf_counter() - begun) * 1e3)
    p90, p95, p99 = (float(np.percentile(took_ms, percent)) for percent in (90, 95, 99))
    sys.stdout.write(
        f"[11/29/2026-08:00:00] [I] === Performance summary ===\n"
        f"[11/29/2026-08:00:00] [I] Throughput: {1e3 * len(took_ms) / sum(took_ms):g} qps\n"
        f"[11/29/2026-08:00:00] [I] Latency: min = {min(took_ms):g} ms, max = {max(took_ms):g} ms, "
        f"mean = {statistics.mean(took_ms):g} ms, median = {statistics.median(took_ms):g} ms, "
        f"percentile(90%) = {p90:g} ms, percentile(95%) = {p95:g} ms, percentile(99%) = {p99:g} ms\n"
    )


def _pairs(shapes: str) -> list[tuple[str, str]]:
    found = (one.rpartition(":") for one in shapes.split(","))
    return [(name, size) for name, _, size in found]


if __name__ == "__main__":
    main(sys.argv[1:])
