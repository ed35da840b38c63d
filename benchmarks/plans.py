"""Plans of TensorRT-RTX for four generations of GPUs, made on a CPU: how large they are, and how long they take."""

from __future__ import annotations

import statistics
from typing import Any

import onnx

from engines.canonical import canonical
from engines.frontend.onnx import tensor_specs
from engines.passes.dynamic_batch import with_batch_axes
from engines.reference import Reference
from engines.samples import find_sampler
from engines.targets.tensorrt_options import BuiltPlan
from tests.targets.test_plans import CNNS, NETWORKS, ROWS, SMS, forms, plan_of

__all__ = ["run"]

ROUNDS = 3
_NARROWED = {
    "bvlc_alexnet": "AlexNet with 256 outputs instead of 4096",
    "vgg19": "VGG19 with 256 outputs instead of 4096",
}
COMMAND = "python -m benchmarks plans"


def run() -> dict[str, Any]:
    """Every network in every precision; the median of three builds of each."""
    rows, details, gpus = [], {}, ", ".join(f"SM{sm}" for sm in SMS)
    for name, make in NETWORKS.items():
        made = _plans(name, make())
        details[name] = made
        sizes = ", ".join(f"{precision} {one['mb']:.1f}" for precision, one in made.items())
        times = ", ".join(f"{one['seconds']:.1f}" for one in made.values())
        rows.append(
            {
                "what": f"plan of {_NARROWED.get(name, name)} for {gpus}: size, and time to build",
                "measured": f"{sizes} MB; {times} s",
                "goal": "built, not run",
                "command": COMMAND,
            }
        )
    return {"rows": rows, "plans": details}


def _plans(name: str, source: onnx.ModelProto) -> dict[str, dict[str, float]]:
    reference = Reference(source)
    model, _ = canonical(source, reference)
    sampler = find_sampler(tensor_specs(model)[0], {}, reference, [50])
    made = {}
    for precision, graph in forms(model, [sampler.draw(seed) for seed in range(ROWS)]).items():
        batched = with_batch_axes(graph, {tensor_specs(graph)[0][0].name: 0}) if name in CNNS else graph
        built: list[BuiltPlan] = [plan_of(batched, sampler.shape) for _ in range(ROUNDS)]
        seconds = statistics.median(one.seconds for one in built)
        made[precision] = {"mb": built[0].size_bytes / 1e6, "seconds": seconds}
    return made
