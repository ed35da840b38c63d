"""What the guards against silent wrong answers cost: each model with them and without, in one process, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import openvino as ov

from benchmarks.guard_networks import NETWORKS
from engines.hardware import usable_threads
from engines.manifest import GUARD_OUTPUT
from engines.reference import Arrays
from engines.runtime.openvino import core
from engines.targets.openvino import compile_model, guards_of, read_model

__all__ = ["run"]

ROUNDS = 9
SECONDS = 2.0


def run() -> dict[str, Any]:
    """Time a run with guards over time a run without, medians of 9 rounds, on one stream over all threads."""
    rows, details = [], {}
    for what, make in NETWORKS.items():
        model, inputs = make()
        guarded = read_model(model)
        pair = [_request(guarded, inputs), _request(core().read_model(model.SerializeToString()), inputs)]
        found = pair[0].get_tensor(GUARD_OUTPUT).data
        if not found.size or found.any():
            raise RuntimeError(f"{what}: expected guards, and none that refuses these inputs; got {found.tolist()}")
        rounds = [_round(pair) for _ in range(ROUNDS)]
        ratio = statistics.median(with_ / without for with_, without in rounds)
        with_ms, without_ms = (statistics.median(times) for times in zip(*rounds, strict=True))
        rows.append(
            {
                "what": f"{what}: a run with its {len(found)} guards against one without",
                "measured": f"{ratio:.3f}x ({with_ms:.2f} against {without_ms:.2f} ms)",
                "goal": "<= 1.03x",
                "command": "make bench",
            }
        )
        details[what] = {"guards": guards_of(guarded), "rounds_ms": rounds}
    return {"rows": rows, "models": details}


def _request(graph: ov.Model, inputs: Arrays) -> ov.InferRequest:
    """Ready, and warm."""
    request = compile_model(graph, 1, usable_threads()).create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, ov.Tensor(array, shared_memory=False))
    request.infer()
    return request


def _round(pair: Sequence[ov.InferRequest]) -> list[float]:
    """The milliseconds of the fastest tenth of the runs of each, which take turns: what disturbs them only adds."""
    times_ms: list[list[float]] = [[] for _ in pair]
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < SECONDS:
        for request, times in zip(pair, times_ms, strict=True):
            begun_s = time.perf_counter()
            request.infer()
            times.append((time.perf_counter() - begun_s) * 1e3)
    return [statistics.quantiles(times, n=10)[0] for times in times_ms]
