"""Quantization and the passes behind it: ranges from samples, signed, residuals freed, layers put back to float."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nncf
import numpy as np
import onnx
import pytest
from nncf.quantization.advanced_parameters import QuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from onnx import helper, numpy_helper

from engines.canonical import canonical
from engines.errors import ModelRefused
from engines.passes.float_layers import float_layers, quantized_layers
from engines.passes.quantize import CALIBRATORS, Quantizer, quantize
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations, unsigned_pairs
from engines.reference import Reference
from engines.targets import openvino as target
from engines.targets.tensorrt_rules import refuse_for_tensorrt
from engines.verify import agreement_bound
from tests.support.onnx_models import FLOAT, build

RNG = np.random.default_rng(0)
F32 = np.float32


def residual_cnn() -> onnx.ModelProto:
    """A stem and a block with a skip, every convolution followed by Relu as in ResNet; a head of 5 classes."""

    def weights(*shape: int) -> np.ndarray:
        return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(F32)

    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", **conv),
        helper.make_node("Relu", ["c0"], ["r0"], name="stem_relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="first", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], name="first_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", **conv),
        helper.make_node("Add", ["c2", "r0"], ["a"], name="sum"),
        helper.make_node("Relu", ["a"], ["r2"], name="sum_relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    stored = {
        "w0": weights(16, 3, 3, 3), "w1": weights(16, 16, 3, 3), "w2": weights(16, 16, 3, 3), "w3": weights(5, 16),
        **{f"b{i}": RNG.standard_normal(n).astype(F32) for i, n in enumerate((16, 16, 16, 5))},
    }  # fmt: skip
    return build(nodes, {"x": (FLOAT, [None, 3, 12, 12])}, {"y": (FLOAT, [None, 5])}, stored, 21)


MODEL = canonical(residual_cnn())[0]
SAMPLES = [{"x": RNG.standard_normal((1, 3, 12, 12), dtype=F32)} for _ in range(32)]
LAYERS = ["stem", "first", "second", "head"]


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    return quantize(MODEL, SAMPLES, len(SAMPLES))


def answers(model: onnx.ModelProto) -> np.ndarray:
    run = Reference(model)
    return np.concatenate([run(sample)["y"] for sample in SAMPLES])


def off(model: onnx.ModelProto) -> float:
    """The largest difference from the float model, as a share of its largest answer."""
    want = answers(MODEL)
    return float(np.abs(answers(model) - want).max() / np.abs(want).max())


def test_weights_are_per_channel_and_biases_stay_float(quantized: onnx.ModelProto) -> None:
    assert quantized_layers(quantized) == LAYERS
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    maker = {name: node for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        if node.name in LAYERS:
            scale = stored[maker[node.input[1]].input[1]]
            assert list(scale.dims) == [16 if node.op_type == "Conv" else 5]
            assert stored[node.input[2]].data_type == FLOAT
    assert {entry.domain for entry in quantized.opset_import} == {""}
    assert off(quantized) < 0.1


@pytest.mark.parametrize(("fix", "most"), [(True, 64), (False, 127)])
def test_the_overflow_fix_leaves_a_bit_of_every_weight_free(fix: bool, most: int) -> None:
    made = quantize(MODEL, SAMPLES, len(SAMPLES), overflow_fix=fix)
    weights = [numpy_helper.to_array(t) for t in made.graph.initializer if t.name.startswith("q_output")]
    largest = max(int(np.abs(array.astype(int)).max()) for array in weights)
    assert len(weights) == len(LAYERS)
    assert most * 0.95 <= largest <= most + 1


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    """Of all calibrators: the samples can be read once alone."""
    return Quantizer(MODEL, iter(SAMPLES), len(SAMPLES), list(CALIBRATORS))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_what_is_measured_once_is_what_nncf_measures_each_time(calibrator: str, quantizer: Quantizer) -> None:
    for fix in (nncf.OverflowFix.DISABLE, nncf.OverflowFix.ENABLE):
        parameters = nncf.AdvancedQuantizationParameters(
            overflow_fix=fix,
            activations_range_estimator_params=getattr(RangeEstimatorParametersSet, CALIBRATORS[calibrator]),
            activations_quantization_params=QuantizationParameters(per_channel=False),
        )
        alone = nncf.quantize(
            MODEL, nncf.Dataset(SAMPLES), preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(SAMPLES),
            advanced_parameters=parameters,
        )  # fmt: skip
        shared = quantizer.quantized(calibrator, overflow_fix=fix is nncf.OverflowFix.ENABLE)
        assert shared.SerializeToString(deterministic=True) == alone.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_differ_by_their_ranges_and_none_is_far_off(name: str) -> None:
    assert off(quantize(MODEL, SAMPLES, len(SAMPLES), name)) < 0.15


def test_calibrators_are_not_all_the_same() -> None:
    rows = [{"x": sample["x"] * (20 if i == 0 else 1)} for i, sample in enumerate(SAMPLES)]  # an outlier

    def first_scale(name: str) -> float:
        made = quantize(MODEL, rows, len(rows), name)
        stored = {tensor.name: tensor for tensor in made.graph.initializer}
        first = next(node for node in made.graph.node if node.op_type == "QuantizeLinear")
        return float(numpy_helper.to_array(stored[first.input[1]]))

    scales = {name: first_scale(name) for name in CALIBRATORS}
    assert scales["minmax"] > 3 * scales["mean_minmax"], "one takes the outlier whole, one its share of the mean"
    assert len({round(scale, 5) for scale in scales.values()}) >= 3


def test_what_cannot_be_quantized_is_refused_in_one_line() -> None:
    with pytest.raises(ModelRefused, match="NNCF cannot quantize the model: "):
        quantize(MODEL, [{"z": SAMPLES[0]["x"]}], 1)


def test_signing_keeps_the_range_and_leaves_nothing_unsigned(quantized: onnx.ModelProto) -> None:
    """Half the steps: an error of at most twice as much a layer."""
    before = quantized.SerializeToString()
    assert unsigned_pairs(quantized)
    signed, note = sign_activations(quantized)
    assert (unsigned_pairs(signed), note, quantized.SerializeToString()) == ([], "", before)
    onnx.checker.check_model(signed, full_check=True)
    assert off(signed) < 2.5 * off(quantized) + 0.02
    assert sign_activations(signed)[0] is signed


def test_a_pair_with_another_zero_point_is_left_and_named() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    stored = {"s": np.array(0.1, F32), "z": np.array(7, np.uint8)}
    model = build(nodes, {"x": (FLOAT, [None, 4])}, {"y": (FLOAT, [None, 4])}, stored, 21)
    same, note = sign_activations(model)
    assert (same is model, note) == (True, "left unsigned, their zero point is not 0: round, back")
    with pytest.raises(ModelRefused, match=r"TensorRT takes signed 8-bit pairs.*: round, back"):
        refuse_for_tensorrt(model)


def test_a_graph_for_tensorrt_has_signed_pairs_alone(quantized: onnx.ModelProto) -> None:
    with pytest.raises(ModelRefused, match="TensorRT takes signed 8-bit pairs"):
        refuse_for_tensorrt(quantized)
    refuse_for_tensorrt(free_residuals(sign_activations(quantized)[0])[0])
    refuse_for_tensorrt(MODEL)


def test_the_sum_of_a_block_reads_its_convolution_directly(quantized: onnx.ModelProto) -> None:
    freed, _ = free_residuals(quantized)
    maker = {name: node for node in freed.graph.node for name in node.output}
    total = next(node for node in freed.graph.node if node.name == "sum")
    assert sorted(maker[name].op_type for name in total.input) == ["Conv", "DequantizeLinear"]
    assert off(freed) <= off(quantized) * 1.5
    onnx.checker.check_model(freed, full_check=True)
    assert free_residuals(freed)[0] is freed


def test_a_sum_of_two_is_an_addition(quantized: onnx.ModelProto) -> None:
    summed = onnx.ModelProto.FromString(quantized.SerializeToString())
    next(node for node in summed.graph.node if node.name == "sum").op_type = "Sum"
    of_sum, of_add = free_residuals(summed)[0], free_residuals(quantized)[0]
    assert [node.input[:] for node in of_sum.graph.node] == [node.input[:] for node in of_add.graph.node]


def test_all_layers_in_float_are_the_model_as_it_was(quantized: onnx.ModelProto) -> None:
    """To the bit: no pair is left, weights and biases are those of then."""
    back = float_layers(quantized, MODEL, LAYERS)
    assert [node.op_type for node in back.graph.node] == [node.op_type for node in MODEL.graph.node]
    assert np.array_equal(answers(back), answers(MODEL))
    assert len(back.graph.initializer) == len(MODEL.graph.initializer)


@pytest.mark.parametrize("kept", [["stem"], ["first"], ["second"], ["head"], ["stem", "head"], ["first", "second"]])
def test_some_layers_in_float_leave_the_others_quantized(kept: list[str], quantized: onnx.ModelProto) -> None:
    signed, _ = free_residuals(sign_activations(quantized)[0])
    mixed = float_layers(signed, MODEL, kept)
    onnx.checker.check_model(mixed, full_check=True)
    assert quantized_layers(mixed) == [name for name in LAYERS if name not in kept]
    assert off(mixed) < off(signed) * 1.5
    assert float_layers(signed, MODEL, []) is signed


def test_a_name_that_is_no_quantized_layer_is_refused(quantized: onnx.ModelProto) -> None:
    with pytest.raises(ModelRefused, match="'sum' is no quantized layer"):
        float_layers(quantized, MODEL, ["sum"])


FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "unsigned": lambda made: made,
    "signed": lambda made: sign_activations(made)[0],
    "freed": lambda made: free_residuals(sign_activations(made)[0])[0],
    "mixed": lambda made: float_layers(free_residuals(sign_activations(made)[0])[0], MODEL, ["first"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_openvino_means_by_a_quantized_graph_what_it_says(form: str, quantized: onnx.ModelProto) -> None:
    """With seven bits of weights; with eight, pairs of products may overflow on a CPU without VNNI."""
    graph = FORMS[form](quantized)
    run = target.runner(target.compile_model(target.read_model(graph), 1, 2), ["y"])
    got, want = np.concatenate([run(sample)["y"] for sample in SAMPLES]), answers(graph)
    assert np.abs(got - want).max() <= agreement_bound(graph) * np.abs(want).max()
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


def test_one_scale_for_all_of_an_activation_also_before_depthwise_convolutions() -> None:
    """NNCF's own choice there is a scale a channel, which TensorRT refuses."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="depthwise", kernel_shape=[3, 3], group=3),
        helper.make_node("Relu", ["h"], ["r"], name="bend"),
        helper.make_node("Conv", ["r", "v", "c"], ["y"], name="deep", kernel_shape=[3, 3], group=3),
    ]
    stored = {name: RNG.standard_normal(shape).astype(F32) for name, shape in
              {"w": (3, 1, 3, 3), "b": (3,), "v": (3, 1, 3, 3), "c": (3,)}.items()}  # fmt: skip
    model = build(nodes, {"x": (FLOAT, [None, 3, 12, 12])}, {"y": (FLOAT, [None, 3, 8, 8])}, stored, 21)
    made = quantize(canonical(model)[0], SAMPLES, len(SAMPLES))
    refuse_for_tensorrt(sign_activations(made)[0])
    nncf_alone = nncf.quantize(model, nncf.Dataset(SAMPLES), preset=nncf.QuantizationPreset.PERFORMANCE)
    with pytest.raises(ModelRefused, match="TensorRT takes one scale for all of an activation; these have more: "):
        refuse_for_tensorrt(nncf_alone)


def test_nobody_is_told_that_nncf_was_used() -> None:
    """In a process of its own, for under pytest NNCF is silent anyway; also without the lock of `engines` itself."""
    code = """
from engines.passes.quantize import quantize
import onnx, sys
sys.modules.pop("openvino_telemetry")
try:
    quantize(onnx.ModelProto(), [], 0)
except Exception:
    pass
from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry
assert isinstance(telemetry, NNCFTelemetryStub), telemetry
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NNCF_", "PYTEST_"))}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], timeout=60, check=True)
