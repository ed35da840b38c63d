"""Binary layers are found in models as they are exported, run on bits, and answer what ONNX Runtime answers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.errors import EngineFailed
from engines.passes.binary_find import find_binary_layers
from engines.passes.binary_layers import with_binary_layers
from engines.plugins.extension import extension_path
from engines.reference import Reference
from engines.targets import openvino as target
from tests.plugins.binary_networks import FORMS, OTHER_FORMS, Network, one_layer
from tests.support.onnx_models import FLOAT, build

LAYERS = ("BinaryThreshold2d", "BinaryConv2d")
"""The first of two gives bits to the second."""
compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")


def wholes(rows: int, channels: int, size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Small whole numbers, zeros of both signs among them: a fifth of all are at the threshold."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (rows, channels, size, size)).astype(np.float32)
    return {"x": np.where(values == 0, rng.choice([-0.0, 0.0], values.shape), values).astype(np.float32)}


def on_bits(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    names = [value.name for value in model.graph.output]
    engine = target.compile_model(target.read_model(model), 1, 1)
    kinds = [str(op.get_rt_info()["layerType"].astype(str)) for op in engine.get_runtime_model().get_ops()]
    assert "Reference" in kinds, "it runs operators of the extension"
    found: np.ndarray = target.runner(engine, names)(inputs)[names[0]]
    return found


def names_of(model: onnx.ModelProto) -> list[str]:
    return [layer.node.name for layer in find_binary_layers(model)[0]]


@compiled
@pytest.mark.parametrize("form", [*FORMS, *OTHER_FORMS])
def test_every_form_of_signs_is_found_and_means_the_same(form: str) -> None:
    """1,000 inputs, ties among them, bit for bit: all sums are whole numbers, or halves."""
    model = one_layer(form, size=4)
    assert len(names_of(model)) == 1
    inputs = wholes(1000, 40, 4)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
@pytest.mark.parametrize("channels", [1, 31, 33, 96, 130])
def test_channels_off_the_word(channels: int) -> None:
    model = one_layer(channels=channels, filters=channels + 1)
    inputs = wholes(3, channels)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
def test_strides_dilations_pads_and_groups() -> None:
    for strides, dilations, pads in itertools.product(([1, 1], [2, 3]), ([1, 1], [2, 1]), ([0, 0, 0, 0], [2, 0, 1, 3])):
        model = one_layer(strides=strides, dilations=dilations, pads=pads)
        inputs = wholes(2, 40)
        np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])
    model = one_layer(channels=64, filters=20, group=2)
    inputs = wholes(2, 64)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_follows_from_sizes(automatic: str) -> None:
    for size, keys in itertools.product(
        (7, 8), ({}, {"strides": [2, 3]}, {"kernel": 2}, {"kernel": 2, "strides": [3, 1]})
    ):
        model = one_layer(size=size, pads=None, auto_pad=automatic, **keys)
        assert len(names_of(model)) == 1
        inputs = wholes(2, 40, size)
        np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


def padded_with(value: float) -> onnx.ModelProto:
    made = Network()
    sign = made.sign("x")
    made.stored["amounts"] = np.array([0, 0, 1, 2, 0, 0, 2, 1])
    made.stored["value"] = np.array(value, np.float32)
    made.nodes.append(helper.make_node("Pad", [sign, "amounts", "value"], ["padded"], name="pad"))
    return made.model(made.conv("padded", 40, 24), 40)


@compiled
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_pad_before_a_layer_becomes_its_own(value: float) -> None:
    model = padded_with(value)
    rewritten, names = with_binary_layers(model)
    assert len(names) == 1
    assert "Pad" not in {node.op_type for node in rewritten.graph.node}
    inputs = wholes(3, 40)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_products_are_layers_too(kind: str) -> None:
    made = Network()
    sign = made.sign("x", "x > 0")
    made.nodes.append(helper.make_node("Flatten", [sign], ["flat"], name="flatten"))
    rows = (made.rng.choice([-1, 1], (70, 45)) * made.rng.integers(1, 3, (70, 1))).astype(np.float32)
    made.stored["w"] = rows if kind == "Gemm" else np.ascontiguousarray(rows.T)
    keys: dict[str, Any] = {"transB": 1} if kind == "Gemm" else {}
    made.nodes.append(helper.make_node(kind, ["flat", "w"], ["y"], name="product", **keys))
    model = build(made.nodes, {"x": (FLOAT, ["N", 5, 3, 3])}, {"y": (FLOAT, ["N", 70])}, made.stored, 21)
    assert names_of(model) == ["product"]
    inputs = wholes(50, 5, 3)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
@pytest.mark.parametrize("seed", range(12))
def test_random_networks(seed: int) -> None:
    """Odd channel counts, strides, pads, residual sums, signs that several layers read."""
    made = Network(seed)
    rng, value, channels, layers = made.rng, "x", int(made.rng.integers(1, 70)), 0
    first = channels
    for _ in range(int(rng.integers(2, 5))):
        sign = made.sign(value, str(rng.choice(list(FORMS))))
        filters, stride = int(rng.integers(1, 70)), int(rng.integers(1, 3))
        one = made.conv(sign, channels, filters, 3, pads=[1, 1, 1, 1], strides=[stride, stride])
        other = made.conv(sign, channels, filters, 1, strides=[stride, stride], bias=False)
        value = made.name("sum")
        made.nodes.append(helper.make_node("Add", [one, other], [value], name=value))
        channels, layers = filters, layers + 2
    model = made.model(value, first)
    rewritten, names = with_binary_layers(model)
    assert len(names) == layers
    packs = [node for node in rewritten.graph.node if node.op_type == "BinaryPack"]
    assert len(packs) == layers // 2, "two layers read the same bits"
    inputs = wholes(20, first, seed=seed)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


def threshold(array: Any) -> onnx.ModelProto:
    model = one_layer()
    tensor = next(one for one in model.graph.initializer if one.name == "zero")
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, np.float32), "zero"))
    return model


@compiled
def test_a_threshold_may_be_one_number_a_channel() -> None:
    model = threshold(np.random.default_rng(3).integers(-2, 3, (1, 40, 1, 1)))
    inputs = wholes(10, 40)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


@compiled
def test_constants_may_be_written_out_for_all_places() -> None:
    model = threshold(np.zeros((1, 40, 8, 8)))
    for tensor in model.graph.initializer:
        if tensor.name in ("one", "minus"):
            whole = np.broadcast_to(numpy_helper.to_array(tensor), (1, 40, 8, 8))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(whole), tensor.name))
    assert len(names_of(model)) == 1
    inputs = wholes(10, 40)
    np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


def widened(name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """What is compared is [N, 40, 1, 1]; this constant makes 8 x 8 places of it."""
    model = one_layer()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 1
    tensor = next(one for one in model.graph.initializer if one.name == name)
    whole = np.ascontiguousarray(np.broadcast_to(numpy_helper.to_array(tensor), shape))
    tensor.CopyFrom(numpy_helper.from_array(whole, name))
    return model


def of_whole_numbers() -> onnx.ModelProto:
    model = one_layer()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    tensor = next(one for one in model.graph.initializer if one.name == "zero")
    tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.int32), "zero"))
    return model


def of_three_dimensions() -> onnx.ModelProto:
    """Rows of steps: the features that meet the weights are the last axis, and as many as there are steps."""
    made = Network()
    made.stored["w"] = made.rng.choice([-1, 1], (40, 8)).astype(np.float32)
    made.nodes.append(helper.make_node("MatMul", [made.sign("x"), "w"], ["y"], name="product"))
    return build(made.nodes, {"x": (FLOAT, ["N", 40, 40])}, {"y": (FLOAT, ["N", 40, 8])}, made.stored, 21)


LEFT_IN_FLOATS = {
    "a threshold that makes places": (lambda: widened("zero", (1, 1, 8, 8)), {"x": np.ones((2, 40, 1, 1), np.float32)}),
    "a branch that makes places": (lambda: widened("one", (1, 1, 8, 8)), {"x": np.ones((2, 40, 1, 1), np.float32)}),
    "whole numbers": (of_whole_numbers, {"x": np.arange(2 * 40 * 64, dtype=np.int32).reshape(2, 40, 8, 8) % 5 - 2}),
    "three dimensions": (of_three_dimensions, {"x": np.random.default_rng(0).standard_normal((2, 40, 40), np.float32)}),
}


@pytest.mark.parametrize("name", LEFT_IN_FLOATS)
def test_what_bits_would_make_another_shape_of_stays_in_floats_and_is_answered(name: str) -> None:
    make, inputs = LEFT_IN_FLOATS[name]
    model = make()
    assert names_of(model) == []
    engine = target.compile_model(target.read_model(model), 1, 1)
    expected = Reference(model)(inputs)["y"]
    np.testing.assert_array_equal(target.runner(engine, ["y"])(inputs)["y"], expected)


def weights(place: tuple[Any, ...], value: float) -> onnx.ModelProto:
    model = one_layer()
    tensor = next(one for one in model.graph.initializer if one.name == "conv2.w")
    array = numpy_helper.to_array(tensor).copy()
    array[place] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@compiled
@pytest.mark.parametrize("scaled", [True, False])
def test_signs_and_scales_of_weights_may_be_written_out(scaled: bool) -> None:
    """As frameworks export layers that keep their weights as floats: Sign of them, times the mean of magnitudes."""
    model = one_layer()
    rng = np.random.default_rng(4)
    floats = numpy_helper.from_array(rng.standard_normal((24, 40, 3, 3)).astype(np.float32), "floats")
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    written = [helper.make_node("Sign", ["floats"], ["signs"], name="signs")]
    if scaled:
        written += [
            helper.make_node("Abs", ["floats"], ["sizes"], name="sizes"),
            helper.make_node("ReduceMean", ["sizes", "axes"], ["mean"], name="mean", keepdims=1),
            helper.make_node("Mul", ["signs", "mean"], ["scaled"], name="scaled"),
        ]
    model.graph.initializer.extend([floats, axes])
    for node in reversed(written):
        model.graph.node.insert(0, node)
    next(node for node in model.graph.node if node.op_type == "Conv").input[1] = written[-1].output[0]
    assert len(names_of(model)) == 1
    inputs = wholes(20, 40)
    expected = Reference(model)(inputs)["y"]
    bound = 360 * float(np.finfo(np.float32).eps) * 360 if scaled else 0.0
    np.testing.assert_allclose(on_bits(model, inputs), expected, rtol=0, atol=bound)


@compiled
def test_a_sign_of_what_is_never_0_takes_one_plane_of_bits() -> None:
    """Sums of 3 x 3 x 41 signs and an even bias are odd; with an odd bias, or a border of zeros, some are 0."""
    for bias, pads, planes in ((2.0, [0, 0, 0, 0], 1), (1.0, [0, 0, 0, 0], 2), (2.0, [1, 1, 1, 1], 2)):
        made = Network()
        first = made.conv(made.sign("x", "x > 0"), 41, 20, pads=pads)
        made.stored[f"{first}.w"] = np.sign(made.stored[f"{first}.w"])
        made.stored[f"{first}.b"] = np.full(20, bias, np.float32)
        model = made.model(made.conv(made.sign(first, "sign(x)"), 20, 8), 41)
        assert len(names_of(model)) == 2
        kinds = [node.op_type for node in with_binary_layers(model)[0].graph.node]
        assert kinds.count("BinaryConv2d") == planes + (planes > 1)
        inputs = wholes(50, 41)
        np.testing.assert_array_equal(on_bits(model, inputs), Reference(model)(inputs)["y"])


def soft_sign(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Signs s of the input, and what these nodes make of them, as a layer's data."""
    made = Network()
    sign = made.sign("x")
    made.nodes += nodes
    for one in nodes:
        for i, name in enumerate(one.input):
            if name == "s":
                one.input[i] = sign
    return made.model(made.conv("data", 40, 8), 40)


def unbounded_estimator() -> onnx.ModelProto:
    return soft_sign(
        helper.make_node("Sub", ["s", "x"], ["d"], name="sub"), helper.make_node("Add", ["d", "x"], ["data"])
    )


LEFT = {
    "what is left of an estimator without limits": (
        unbounded_estimator,
        "what its estimator has left, (sign - c) + c, is rounded to other values than its signs",
    ),
    "values that are no signs": (
        lambda: soft_sign(helper.make_node("Add", ["s", "two"], ["data"], name="add")),
        "its values are 1, 3 and 3 below, at and above a threshold",
    ),
    "a weight of another magnitude": (lambda: weights((0, 0, 0, 0), 9), ""),
    "weights of 0": (lambda: weights((slice(None), 0), 0), ""),
    "a threshold for each place": (
        lambda: threshold(np.arange(64).reshape(8, 8)),
        "its threshold is not one number a channel",
    ),
    "padding with another value": (lambda: padded_with(-1.0), "it is padded with -1, and its values are 1 and -1"),
    "groups off the word": (
        lambda: one_layer(filters=24, group=2),
        "it has groups of 20 channels; expected a multiple of 32",
    ),
    "padding by size": (
        lambda: one_layer(size="H", pads=None, auto_pad="SAME_UPPER", strides=[2, 2]),
        "its padding follows from its input's size, which is not known",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_binary_is_left_with_a_reason(name: str) -> None:
    make, reason = LEFT[name]
    model = make()
    found, refused = find_binary_layers(model)
    assert found == []
    assert list(refused.values()) == ([reason] if reason else [])
    assert with_binary_layers(model)[0] is model


def classifier(seed: int = 0) -> onnx.ModelProto:
    """A float stem, two binary layers, a float head, as a framework exports it."""
    rng = np.random.default_rng(seed)
    made = Network(seed)
    made.stored["stem"] = (rng.standard_normal((64, 3, 3, 3)) / 5).astype(np.float32)
    made.nodes.append(helper.make_node("Conv", ["x", "stem"], ["s"], name="stem", pads=[1, 1, 1, 1]))
    value = made.conv(made.sign("s"), 64, 96, pads=[1, 1, 1, 1], strides=[2, 2])
    value = made.conv(made.sign(value), 96, 128, pads=[1, 1, 1, 1])
    made.nodes.append(helper.make_node("GlobalAveragePool", [value], ["p"], name="pool"))
    made.stored["head"] = (rng.standard_normal((10, 128, 1, 1)) / 50).astype(np.float32)
    made.nodes.append(helper.make_node("Conv", ["p", "head"], ["h"], name="head"))
    return made.model("h", 3)


def test_a_sum_that_fp32_cannot_hold_is_left() -> None:
    made = Network()
    made.stored["w"] = np.ones((1, 2**24 + 1), np.float32)
    made.nodes.append(helper.make_node("Gemm", [made.sign("x"), "w"], ["y"], name="product", transB=1))
    model = build(made.nodes, {"x": (FLOAT, ["N", 2**24 + 1])}, {"y": (FLOAT, ["N", 1])}, made.stored, 21)
    assert find_binary_layers(model) == ([], {"product": "sums of 16777217 signs are not exact in FP32"})


@compiled
def test_an_input_smaller_than_a_kernel_is_refused_and_the_next_is_answered() -> None:
    made = Network()
    model = made.model(made.conv(made.sign("x"), 40, 8, 5), 40, "H")
    run = target.runner(target.compile_model(target.read_model(model), 1, 1), ["y"])
    with pytest.raises(EngineFailed, match="smaller than its kernel"):
        run(wholes(1, 40, 3))
    inputs = wholes(2, 40, 9)
    np.testing.assert_array_equal(run(inputs)["y"], Reference(model)(inputs)["y"])
