"""Times under a cap on the instruction set: each in a process of its own, runs interleaved, the best of each counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["KERNELS", "best_us", "caps", "in_child", "request"]

KERNELS = {"AVX2": "avx2", "DEFAULT": "avx512"}
"""Ours of binary layers, by oneDNN's name of the cap."""
WARM_S = 0.2


def caps() -> list[str]:
    """Those that this processor can show."""
    from engines.plugins.native import Native

    usable = Native().usable()
    return [cap for cap, kernel in KERNELS.items() if kernel in usable]


def in_child(module: str, cap: str) -> Any:
    """What `python -m MODULE KERNEL` prints as JSON in its last line, where all runtimes are capped alike."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap}
    command = [sys.executable, "-m", module, KERNELS[cap]]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def best_us(runners: Mapping[str, Callable[[], Any]], runs: int, repeats: int = 1) -> dict[str, float]:
    """The best of so many turns of each; `repeats` are how often it runs in a turn.

    Once: it finds the caches as the others have left them. More often: as it has left them itself.
    """
    for run_once in runners.values():
        until_s = time.perf_counter() + WARM_S
        while time.perf_counter() < until_s:
            run_once()
    best = dict.fromkeys(runners, float("inf"))
    for _ in range(runs):
        for name, run_once in runners.items():
            for _ in range(repeats):
                began_s = time.perf_counter()
                run_once()
                best[name] = min(best[name], time.perf_counter() - began_s)
    return {name: round(1e6 * seconds, 1) for name, seconds in best.items()}


def request(graph: Any, x: np.ndarray) -> Callable[[], Any]:
    """Runs OpenVINO's graph on `x`, on one stream and one thread; nothing is copied, neither in nor out."""
    import openvino as ov

    from engines.targets.openvino import compile_model

    made = compile_model(graph, 1, 1).create_infer_request()
    made.set_input_tensor(0, ov.Tensor(x))
    return lambda: made.infer(share_outputs=True)
