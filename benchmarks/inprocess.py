"""The limit: the same OpenVINO model called in a process of its own, inputs bound once, nothing but inference.

Run as a child: one JSON line `{"streams", "threads", "batch", "seconds"}` a round on stdin, one answer on stdout.
Without "streams" it is one stream that is waited for, run by run: the latency that nothing in front of it can go below.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Iterator

import numpy as np
import openvino as ov


class Limit:
    """One compiled model at a time, as few bytes as the measurement needs."""

    def __init__(self, path: str) -> None:
        self._core, self._path = ov.Core(), path
        self._at: tuple[int, int, int] | None = None
        self._requests: list[ov.InferRequest] = []
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def measure(self, streams: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """Rows a second and CPU seconds a row, every stream busy all the time."""
        self._prepare(streams, threads, batch)
        runs, started_s, before = 0, time.perf_counter(), os.times()
        for request in self._requests:
            request.start_async()
        while time.perf_counter() - started_s < seconds:
            index = self._done.get()
            runs += 1
            self._requests[index].start_async()
        for _ in self._requests:
            self._done.get()
            runs += 1
        spent_s, after = time.perf_counter() - started_s, os.times()
        cpu_s = after.user + after.system - before.user - before.system
        return {"rows_per_s": runs * batch / spent_s, "cpu_s_per_row": cpu_s / (runs * batch)}

    def alone(self, threads: int, batch: int, seconds: float) -> dict[str, float]:
        """The same of a caller that waits, and p50 and p99 of a run in ms."""
        self._prepare(1, threads, batch)
        request, times_s = self._requests[0], []
        started_s, before = time.perf_counter(), os.times()
        while (began_s := time.perf_counter()) - started_s < seconds:
            request.infer(share_outputs=True)
            times_s.append(time.perf_counter() - began_s)
        spent_s, after = time.perf_counter() - started_s, os.times()
        rows = len(times_s) * batch
        p50, p99 = 1000 * np.percentile(times_s, [50, 99])
        cpu_s = after.user + after.system - before.user - before.system
        return {"rows_per_s": rows / spent_s, "cpu_s_per_row": cpu_s / rows, "p50_ms": float(p50), "p99_ms": float(p99)}

    def _prepare(self, streams: int, threads: int, batch: int) -> None:
        if self._at == (streams, threads, batch):
            return
        self._requests.clear()
        config = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = self._core.compile_model(self._path, "CPU", config)
        shape = [batch, *_row_shape(compiled)]
        for index in range(streams):
            request = compiled.create_infer_request()
            request.get_input_tensor(0).shape = shape
            request.get_input_tensor(0).data[...] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            request.set_callback(self._done.put, index)
            request.start_async()
            self._done.get()
            self._requests.append(request)
        self._at = (streams, threads, batch)


def _row_shape(compiled: ov.CompiledModel) -> list[int]:
    return [dimension.get_length() for dimension in list(compiled.inputs[0].partial_shape)[1:]]


def rounds() -> Iterator[dict[str, float]]:
    """The orders, one a line, until stdin ends."""
    for line in sys.stdin:
        yield json.loads(line)


if __name__ == "__main__":
    limit = Limit(sys.argv[1])
    for order in rounds():
        measured = limit.measure if "streams" in order else limit.alone
        print(json.dumps(measured(**order)), flush=True)  # type: ignore[operator]
