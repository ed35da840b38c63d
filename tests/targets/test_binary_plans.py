"""TensorRT-RTX plans with binary layers as plugins, for GPUs that are not here: alone, between others, in networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.manifest import decode
from engines.passes.binary_layers import with_binary_layers
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.half import to_half
from engines.passes.quantize import Quantizer
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes, plain_activation
from engines.reference import Arrays
from engines.spec import Spec
from engines.targets.tensorrt_binary import lowerings, with_plugins
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_process import build_apart
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from tests.passes.binary_files import File
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build
from tests.support.servers import ROOT

SMS = (80, 86, 89)
SAMPLE = ROOT / "model_repo" / "fashion_binary" / "1" / "model.onnx"
FASHION = {"BinaryConv2d": 1, "BinaryMaxPool": 1, "BinaryPack": 1, "BinaryThreshold2d": 4}
BLOCKS = 3


def planned(model: onnx.ModelProto, sizes: tuple[int, ...] = (1, 8, 32)) -> BuiltPlan:
    """The plan of a graph with plugin nodes, its first dimension variable; the parser made what the graph says."""
    name = model.graph.input[0].name
    shape = tensor_specs(model)[0][0].shape[1:]
    batched = with_batch_axes(model, {name: 0})
    ranges = {name: tuple((rows, *shape) for rows in sizes)}
    options = PlanOptions(profiles=(ranges,), sms=SMS, has_plugins=True)
    data, plan = build_apart("tensorrt-rtx", batched, options)
    assert data[:4] == b"vtrt"
    counted = graph_counts(batched)
    assert counted == {key: count for key, count in plan.network.items() if key in counted or "QUANT" in key}
    return plan


def plugins(plan: BuiltPlan) -> dict[str, int]:
    return {key: count for key, count in plan.network.items() if key.startswith("Binary")}


def convolution() -> tuple[File, str]:
    file = File(64)
    own = ConvAttributes(channels=64, pads=(1, 1, 1, 1)).values()
    return file, file.add(
        "BinaryConv2d", file.pack("x"), {**file.weights(64, 3, 3, 64), **file.floats(64, plain_activation())}, **own
    )


def bits_to_bits() -> tuple[File, str]:
    file = File(64)
    own = ConvAttributes(channels=64, pads=(1, 1, 1, 1)).values()
    bits = file.add(
        "BinaryThreshold2d", file.pack("x", strict=1), {**file.weights(64, 3, 3, 64), **file.limits(64)}, **own
    )
    pooled = file.add("BinaryMaxPool", bits, {}, **PoolAttributes(kernel_shape=(2, 2), strides=(2, 2)).values())
    further = {**file.weights(64, 3, 3, 64), **file.floats(64, plain_activation())}
    return file, file.add("BinaryConv2d", pooled, further, **{**own, "strides": [2, 2]})


def products() -> tuple[File, str]:
    file = File(64, flat=True)
    own = GemmAttributes(channels=64)
    bits = file.add("BinaryThreshold", file.pack("x"), {**file.weights(64, 64), **file.limits(64)}, **own.values())
    further = {**file.weights(64, 64), **file.floats(64, plain_activation())}
    return file, file.add("BinaryGemm", bits, further, **GemmAttributes(channels=64, low=0).values())


ALONE = {"pack, convolution": convolution, "bits to bits, pooled": bits_to_bits, "products": products}


def alone(case: str) -> onnx.ModelProto:
    """One row, so that the shape of an image is known."""
    file, output = ALONE[case]()
    file.shape = [1, 64, 14, 14][: len(file.shape)]
    return file.model(output)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", ALONE)
def test_operators_alone(case: str, precision: str) -> None:
    model = alone(case)
    kinds = {node.op_type for node in model.graph.node}
    plan = planned(with_plugins(_between_halves(model) if precision == "fp16" else model))
    assert {key.split()[0] for key in plugins(plan)} == kinds
    floats = {key.split()[1] for key in plugins(plan) if key.startswith(("BinaryConv2d", "BinaryGemm"))}
    assert floats == {precision.upper()}


def _between_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a layer in half makes is packed, and another reads what the last operator makes."""
    graph, whole = model.graph, onnx.ModelProto()
    whole.CopyFrom(model)
    flat = len(graph.input[0].type.tensor_type.shape.dim) == 2
    weights = np.random.default_rng(1).standard_normal((64, 64) if flat else (64, 64, 1, 1)).astype(np.float32)
    given, made = graph.input[0].name, graph.output[0].name
    around = [
        helper.make_node("Gemm" if flat else "Conv", [source, "around"], [result], name=result)
        for source, result in ((given, "inner"), (made, "outer"))
    ]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "inner" if name == given else name
    del whole.graph.node[:]
    whole.graph.node.extend([around[0], *graph.node, around[1]])
    whole.graph.output[0].name = "outer"
    whole.graph.initializer.append(onnx.numpy_helper.from_array(weights, "around"))
    half, note = to_half(whole)
    assert "2 nodes run in half precision" in note
    return half


def signed(x: str, y: str) -> list[NodeProto]:
    return [
        helper.make_node("GreaterOrEqual", [x, "nothing"], [f"{y}.positive"], name=f"{y}.compare"),
        helper.make_node("Where", [f"{y}.positive", "plus", "minus"], [y], name=f"{y}.sign"),
    ]


def residual_network() -> onnx.ModelProto:
    """A stem, binary blocks with sums around each, as Bi-Real Net has them, and a head, all of 64 channels."""
    rng = np.random.default_rng(2)
    signs = {f"s{i}": np.sign(rng.standard_normal((64, 64, 3, 3))).astype(np.float32) for i in range(BLOCKS)}
    plain = {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in (
        ("stem", (64, 3, 3, 3)), ("head", (64, 64, 3, 3)))}  # fmt: skip
    numbers = {"nothing": 0, "plus": 1, "minus": -1}
    nodes = [helper.make_node("Conv", ["x", "stem"], ["a0"], name="stem", pads=[1] * 4)]
    for i in range(BLOCKS):
        nodes += [
            *signed(f"a{i}", f"b{i}"),
            helper.make_node("Conv", [f"b{i}", f"s{i}"], [f"c{i}"], name=f"binary{i}", pads=[1] * 4),
            helper.make_node("Mul", [f"c{i}", "tenth"], [f"d{i}"], name=f"scale{i}"),
            helper.make_node("Add", [f"a{i}", f"d{i}"], [f"a{i + 1}"], name=f"sum{i}"),
        ]
    nodes += [
        helper.make_node("Relu", [f"a{BLOCKS}"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "head"], ["h"], name="head", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["h"], ["y"], name="pool"),
    ]
    constants = {name: np.array(value, np.float32) for name, value in {**numbers, "tenth": 0.1}.items()}
    given = {"x": (FLOAT, [1, 3, 16, 16])}
    return build(nodes, given, {"y": (FLOAT, [1, 64, 1, 1])}, {**signs, **plain, **constants}, 21)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8, else fp16"])
def test_binary_layers_in_residual_blocks_between_layers_of_every_precision(precision: str) -> None:
    model = canonical(residual_network())[0]
    if precision.startswith("int8"):
        rows: list[Arrays] = [
            {"x": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)} for seed in range(8)
        ]
        quantized = Quantizer(model, rows, len(rows), ["minmax"]).quantized("minmax", overflow_fix=False)
        model = free_residuals(sign_activations(quantized)[0])[0]
    packed, names = with_binary_layers(model)
    assert len(names) == BLOCKS
    graph = with_bodies(packed)
    if precision.endswith("fp16"):
        graph, _ = to_half(graph)
    refuse_for_tensorrt(graph)
    plan = planned(with_plugins(graph))
    found = plugins(plan)
    assert found["BinaryPack INT32"] == BLOCKS
    assert sum(count for key, count in found.items() if key.startswith("BinaryConv2d")) == BLOCKS
    if precision.endswith("fp16"):
        assert found.get("BinaryConv2d FP16")
    if precision.startswith("int8"):
        assert plan.network["QUANTIZE INT8"] >= 2, "stem and head"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: onnx.load(SAMPLE), FASHION),
        (binary_resnet18, {"BinaryConv2d": 16, "BinaryPack": 16}),
    ],
    ids=["sample classifier", "binary ResNet-18"],
)
def test_whole_networks(model: Any, expected: dict[str, int], precision: str) -> None:
    """A plan holds a weight as a bit, but that rows are filled to whole steps: 18 words of 64 channels to 24."""
    graph = with_bodies(with_binary_layers(canonical(model())[0])[0])
    dims = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    bits = sum(
        32 * int(np.prod(dims[n.input[1]]))
        for n in graph.graph.node
        if n.op_type in ("BinaryConv2d", "BinaryThreshold2d")
    )
    if precision == "fp16":
        graph, _ = to_half(graph)
    (lowering,) = lowerings(graph, SMS)
    assert dict(lowering.plugins) == expected
    plan = planned(lowering.graph)
    counted = Counter({key.split()[0]: 0 for key in plugins(plan)})
    for key, count in plugins(plan).items():
        counted[key.split()[0]] += count
    assert counted == expected
    assert bits / 8 <= lowering.weight_bytes <= bits / 8 * 24 / 18


def test_what_a_creator_refuses_is_said() -> None:
    model = with_plugins(alone("pack, convolution"))
    for attribute in model.graph.node[1].attribute:
        if attribute.name == "strides":
            attribute.ints[:] = [0, 1]
    with pytest.raises(ModelRefused, match=r"n1: BinaryConv2d: strides and dilations start at 1"):
        planned(model)


def test_shapes_that_do_not_fit_are_refused_by_the_plugin() -> None:
    """They would be read out of their bounds."""
    model = with_plugins(alone("pack, convolution"))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("gpu_weights"))
    weights.CopyFrom(onnx.numpy_helper.from_array(np.zeros((64, 16), np.int32), weights.name))
    with pytest.raises(ModelRefused, match=r"BinaryConv2d: weights: found \[16\], expected \[24\]"):
        planned(model)


def test_the_command_makes_both_engines_with_plugins_in_each(tmp_path: Path) -> None:
    """GPUs with 1-bit units get a plan with plugins, Blackwell one of its own; the CPU's runs native kernels."""
    command = [
        sys.executable, "-m", "app", "compile", str(SAMPLE), "--name", "binary", "--repository",
        str(tmp_path / "models"), "--targets", "openvino,tensorrt-rtx", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    cpu, bits, whole = report["targets"]
    assert [layer["op_type"] for layer in report["layers"]].count("BinaryThreshold2d") == 4, cpu
    assert (bits["gpus"], bits["binary"], bits["plugins"]) == (["SM80", "SM86", "SM89"], "bits, by plugins", FASHION)
    assert (whole["gpus"], whole["binary"], whole["plugins"]) == (["SM120"], "INT8 convolutions, exact", {})
    assert 6 < whole["binary_weight_bytes"] / bits["binary_weight_bytes"] <= 8, "a byte instead of a bit"
    manifest = decode((tmp_path / "models" / "binary" / "1" / "manifest.json").read_bytes())
    assert [(plan.file, plan.sms, plan.plugins) for plan in manifest.plans] == [
        ("tensorrt-rtx.plan", (80, 86, 89), tuple(FASHION)),
        ("tensorrt-rtx.lowered.plan", (120,), ()),
    ]
    shown = subprocess.run(
        [sys.executable, "-m", "app", "inspect", "binary", "--repository", str(tmp_path / "models")],
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert f"binary layers as bits, by plugins, {bits['binary_weight_bytes']:,} bytes of weights" in shown
    assert f"as INT8 convolutions, exact, {whole['binary_weight_bytes']:,} bytes of weights" in shown
    folder = tmp_path / "models" / ".cache" / manifest.key
    assert {plan.file: plan.size_bytes for plan in manifest.plans} == {
        file.name: file.stat().st_size for file in folder.glob("*.plan")
    }


def test_signs_may_be_taken_of_fp32_where_the_rest_runs_in_half(tmp_path: Path) -> None:
    """Rounding to half turns signs of what is near 0, and with them decisions: noise shows it more than pictures do."""
    _, report = built(tmp_path, onnx.load(SAMPLE), Spec(targets=("openvino", "tensorrt-rtx")))
    bits, whole = (one for one in report.targets if one.target == "tensorrt-rtx")
    assert bits.chosen == whole.chosen == "fp16, fp32 before signs", (bits, report.candidates)
    assert bits.network["CONVOLUTION FP32"] == 1, "the stem"
    assert bits.network["BinaryConv2d FP16"] == 1
    assert bits.network["MATRIX_MULTIPLY FP16"] == 1
    assert whole.network["CONVOLUTION FP32"] == 6, "FP16 has not the sums of the binary layers"
