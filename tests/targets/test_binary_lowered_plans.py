"""TensorRT-RTX builds binary layers in INT8 and FP8 for GPUs that are not here; none is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.errors import ModelRefused
from engines.passes.binary_layers import with_binary_layers
from engines.passes.binary_lowered import Kind, Lowered, lowered
from engines.passes.half import to_half
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes, plain_activation
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_process import build_apart
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from tests.passes.binary_files import File
from tests.plugins.test_operators import epilogue

SAMPLE = Path(__file__).parents[2] / "model_repo" / "fashion_binary" / "1" / "model.onnx"
TARGETS: list[tuple[Kind, tuple[int, ...]]] = [("INT8", (80,)), ("INT8", (120,)), ("FP8", (89,)), ("FP8", (120,))]
PROGRAM_TYPES = {"INT8": "int8", "FP8": "fp8_e4m3"}
PAIRS = ("CONVOLUTION", "DEQUANTIZE", "QUANTIZE")


def resnet18() -> ModelProto:
    return with_binary_layers(canonical(binary_resnet18(64))[0])[0]


def all_operators() -> ModelProto:
    """Groups, borders of both kinds, bits as -1 and as 0, thresholds, a pool, products, every kind of epilogue."""
    made = File(64)
    keys: list[dict[str, Any]] = [
        {"group": 2, "pads": (1, 1, 1, 1)},
        {"pads": (2, 1, 0, 1), "pad_value": 1, "strides": (2, 1)},
        {"pads": (1, 1, 1, 1), "low": 0, "dilations": (2, 2)},
    ]
    bits = made.pack("x")
    for own in (ConvAttributes(channels=64, **one) for one in keys):
        stored = {**made.weights(64, 3, 3, 64 // own.group), **made.limits(64)}
        bits = made.add("BinaryThreshold2d", bits, stored, **own.values())
    bits = made.add("BinaryMaxPool", bits, {}, **PoolAttributes(kernel_shape=(2, 2), strides=(2, 2)).values())
    value = made.add(
        "BinaryConv2d", bits, {**made.weights(64, 1, 1, 64), **epilogue(64, 64)}, **ConvAttributes(channels=64).values()
    )
    made.nodes += [
        helper.make_node("GlobalMaxPool", [value], ["most"], name="most"),
        helper.make_node("Flatten", ["most"], ["flat"], name="flat"),
    ]
    own = GemmAttributes(channels=64)
    bits = made.add("BinaryThreshold", made.pack("flat"), {**made.weights(64, 64), **made.limits(64)}, **own.values())
    relu = np.zeros_like(plain_activation())
    return made.model(made.add("BinaryGemm", bits, {**made.weights(32, 64), **made.floats(32, relu)}, **own.values()))


NETWORKS = {
    "sample": (lambda: onnx.load(SAMPLE), (1, 28, 28)), "ResNet-18": (resnet18, (3, 64, 64)),
    "all operators": (all_operators, (64, 16, 14)),
}  # fmt: skip


def plan_of(graph: ModelProto, shape: tuple[int, ...], sms: tuple[int, ...]) -> tuple[bytes, BuiltPlan]:
    """For 1 to 16 rows."""
    for value in graph.graph.input:  # the network's, and the file's, whose other sizes are variable
        for dim, size in zip(value.type.tensor_type.shape.dim[1:], shape, strict=True):
            dim.dim_value = size
    low, best, high = ((rows, *shape) for rows in (1, 8, 16))
    options = PlanOptions(profiles=({graph.graph.input[0].name: (low, best, high)},), sms=sms)
    return build_apart("tensorrt-rtx", graph, options)


def weight_types(plan: bytes, written: Lowered) -> dict[int, set[str]]:
    """Types of the constants in a plan's program, by their bytes, of those sizes that layers' weights have."""
    text = plan.decode("latin-1")
    found: dict[int, set[str]] = {}
    for size, kind in re.findall(r"tensor=\{[^}]*const_payload_size=(\d+) [^\n]* type=(\w+) \}", text):
        if int(size) in written.stored_bytes.values():
            found.setdefault(int(size), set()).add(kind)
    return found


@pytest.mark.parametrize("halved", [False, True], ids=["FP32", "FP16"])
@pytest.mark.parametrize(("kind", "sms"), TARGETS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_has_the_layers_of_the_graph(name: str, kind: Kind, sms: tuple[int, ...], halved: bool) -> None:
    """Counted in the network as it was parsed, and weights that stay 8 bits in the program that the plan holds."""
    make, shape = NETWORKS[name]
    written = lowered(make(), kind)
    graph = to_half(written.model, written.names)[0] if halved else written.model
    refuse_for_tensorrt(graph)
    plan, built = plan_of(graph, shape, sms)
    assert built.sms == sms
    counted = {key: count for key, count in built.network.items() if key.startswith(PAIRS)}
    assert counted == graph_counts(graph)
    quantized = {node.output[0] for node in written.model.graph.node if node.op_type == "QuantizeLinear"}
    assert counted[f"QUANTIZE {kind}"] == len(quantized) > 0
    assert counted["DEQUANTIZE FP32"] == len(quantized) + len(written.stored_bytes)
    types = weight_types(plan, written)
    assert types.keys() == set(written.stored_bytes.values())
    assert all(PROGRAM_TYPES[kind] in kinds for kinds in types.values())


def test_fp8_is_not_for_gpus_that_have_none() -> None:
    written = lowered(onnx.load(SAMPLE), "FP8")
    with pytest.raises(ModelRefused, match=r"sm80.*fp8_e4m3"):
        plan_of(written.model, (1, 28, 28), (80,))
