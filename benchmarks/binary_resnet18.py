"""A binary ResNet-18 beside its twin in floats: batch 1, one thread, both as a build makes them.

Each instruction set in a process of its own; runs interleaved, the best of each counts. Where the time of the binary
one goes is told by kind of layer.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.capped import KERNELS, best_us, caps, in_child, request
from engines.report import Layer

__all__ = ["run"]

RUNS = 60
PROFILES = 5
NAME = "binary_resnet18"
COMMAND = "make bench-binary"
WHAT = "binary ResNet-18 (random weights) 224x224, FP32 stem, head and 1x1 convolutions, batch 1, one thread"


def run() -> dict[str, Any]:
    """Times in us by instruction set: of the networks, and of the layers of the binary one."""
    found = {cap: in_child(f"benchmarks.{NAME}", cap) for cap in caps()}
    return {"rows": [_row(cap, one) for cap, one in found.items()], "measured": found}


def _row(cap: str, found: dict[str, Any]) -> dict[str, str]:
    best, kinds = found["best_us"], found["kinds_us"]
    ours, total = best["binary"], sum(kinds.values())
    shares = ", ".join(f"{100 * us / total:.0f} % {kind}" for kind, us in list(kinds.items())[:5])
    return {
        "what": f"{WHAT}, {KERNELS[cap]}: against its twin in floats without signs, and ResNet-18",
        "measured": f"{best['twin'] / ours:.2f}x and {best['ResNet-18'] / ours:.2f}x ({ours / 1e3:.2f} ms; {shares})",
        "goal": ">= 3.5x its twin",
        "command": COMMAND,
    }


def _measure(kernel: str) -> dict[str, Any]:
    """In the child: the best times, and those of the binary network's layers, in us."""
    from benchmarks.networks import binary_resnet18, resnet18
    from engines.plugins.native import Native
    from engines.targets.openvino_profile import timed_layers

    Native().pin(kernel)
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    models = {"binary": binary_resnet18(), "twin": binary_resnet18(binary=False), "ResNet-18": resnet18()}
    graphs = {name: _graph(model) for name, model in models.items()}
    best = best_us({name: request(graph, x) for name, graph in graphs.items()}, RUNS)
    layers = _layers([timed_layers(graphs["binary"], {"image": x}, 1) for _ in range(PROFILES)])
    return {"best_us": best, "kinds_us": _by_kind(layers), "layers": layers}


def _layers(profiles: list[tuple[Layer, ...]]) -> list[dict[str, Any]]:
    """In their order, each with the least of its times; the runtime has none for what took it no microsecond."""
    times: dict[str, list[float]] = defaultdict(list)
    for layer in (layer for profile in profiles for layer in profile):
        times[layer.name] += [layer.time_us or 0.0]
    return [
        {"name": layer.name, "kind": layer.op_type, "kernel": layer.kernel, "us": min(times[layer.name])}
        for layer in profiles[0]
        if max(times[layer.name])
    ]


def _graph(model: Any) -> Any:
    """As a build makes it: canonical, then the target's."""
    from engines.canonical import canonical
    from engines.targets.openvino import read_model

    return read_model(canonical(model)[0])


def _by_kind(layers: list[dict[str, Any]]) -> dict[str, float]:
    """The longest first."""
    sums: dict[str, float] = defaultdict(float)
    for layer in layers:
        sums[layer["kind"]] += layer["us"]
    return dict(sorted(sums.items(), key=lambda one: -one[1]))


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
