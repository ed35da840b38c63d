"""Graphs with plugin nodes: which casts go into a layer and which stay, and what has no layout for the GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.gpu.operators import OPERATORS
from engines.plugins.ops import DOMAIN, ConvAttributes, GemmAttributes, plain_activation
from engines.targets.tensorrt_binary import has_binary_layers, lowerings, with_plugins
from tests.passes.binary_files import File, in_numpy
from tests.support.onnx_models import linear

FIELDS = {operator.name: {field.name for field in operator.fields} for operator in OPERATORS}
INPUTS = {operator.name: len(operator.inputs) for operator in OPERATORS}


def layer() -> tuple[File, str]:
    file = File(64)
    own = ConvAttributes(channels=64, pads=(1, 1, 1, 1)).values()
    further = {**file.weights(40, 3, 3, 64), **file.floats(40, plain_activation())}
    return file, file.add("BinaryConv2d", file.pack("x"), further, **own)


def cast(model: ModelProto, source: str, result: str, kind: int) -> None:
    model.graph.node.append(helper.make_node("Cast", [source], [result], name=result, to=kind))


def of(model: ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def test_nodes_have_the_fields_and_inputs_of_their_plugins() -> None:
    file, floats = layer()
    made = with_plugins(file.model(floats))
    for node in made.graph.node:
        assert attributes(node).keys() == FIELDS[node.op_type] | {"plugin_namespace", "plugin_version"}
        assert len(node.input) == INPUTS[node.op_type]
    assert not made.functions
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    node = of(made, "BinaryConv2d")
    np.testing.assert_array_equal(stored[node.input[1]], gpu_weights(file.stored["n1.w"]))
    np.testing.assert_array_equal(stored[node.input[2]], gpu_sums(file.stored["n1.w"], 64))
    assert "n1.w" not in stored, "weights are kept once"


def test_the_one_cast_behind_a_layer_goes_into_it() -> None:
    file, floats = layer()
    model = file.model(floats)
    cast(model, floats, "half", TensorProto.FLOAT16)
    model.graph.output[0].name = "half"
    made = with_plugins(model)
    assert [node.op_type for node in made.graph.node] == ["BinaryPack", "BinaryConv2d"]
    assert (attributes(of(made, "BinaryConv2d"))["half"], list(of(made, "BinaryConv2d").output)) == (1, ["half"])


@pytest.mark.parametrize("reader", ["another node", "a result"])
def test_floats_that_others_read_stay(reader: str) -> None:
    file, floats = layer()
    model = file.model(floats)
    cast(model, floats, "half", TensorProto.FLOAT16)
    if reader == "another node":
        model.graph.node.append(helper.make_node("Relu", [floats], ["y"], name="relu"))
        model.graph.output[0].name = "y"
    model.graph.output.append(helper.make_tensor_value_info("half", TensorProto.FLOAT16, [None] * 4))
    made = with_plugins(model)
    assert attributes(of(made, "BinaryConv2d"))["half"] == 0
    assert of(made, "Cast").output == ["half"]


@pytest.mark.parametrize(
    ("kind", "left"), [(TensorProto.FLOAT16, ["BinaryPack"]), (TensorProto.INT32, ["Cast", "BinaryPack"])]
)
def test_halves_alone_are_packed_as_they_are(kind: int, left: list[str]) -> None:
    file = File(64)
    packed = file.pack("x")
    file.nodes.insert(0, helper.make_node("Cast", ["given"], ["x"], name="x", to=TensorProto.FLOAT))
    model = file.model(packed)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("given", kind, ["n", 64, "h", "w"]))
    made = with_plugins(model)
    assert [node.op_type for node in made.graph.node] == left
    assert made.graph.node[0].input[0] == "given"


def test_bits_that_groups_share_a_word_of_are_packed_of_floats() -> None:
    """Two groups of 33 filters: the second's bits begin within a word of the first's."""
    file = File(64)
    own = ConvAttributes(channels=64, group=2, pads=(1, 1, 1, 1)).values()
    limits = file.limits(66)
    limits["t"][:4] = [-(2**31), 2**31 - 1, -(2**31), 2**31 - 1]
    bits = file.add("BinaryThreshold2d", file.pack("x"), {**file.weights(66, 3, 3, 32), **limits}, **own)
    model = file.model(bits)
    made = with_plugins(model)
    assert [node.op_type for node in made.graph.node] == ["BinaryPack", "BinaryConv2d", "BinaryPack"]
    written = ModelProto()
    written.CopyFrom(model)
    del written.graph.node[:]
    for node in made.graph.node:  # back as the operators are defined: with weights as files have them
        plain = written.graph.node.add()
        plain.CopyFrom(node)
        if node.op_type == "BinaryConv2d":
            del plain.input[1:3]
            plain.input.insert(1, "n1.w")
        del plain.attribute[:]
        plain.attribute.extend(
            one for one in node.attribute if one.name not in ("half", "kernel_shape") and "plugin" not in one.name
        )
    known = {tensor.name for tensor in written.graph.initializer}
    written.graph.initializer.extend(t for t in made.graph.initializer if t.name not in known)
    x = np.random.default_rng(1).integers(-3, 4, (2, 64, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(in_numpy(written, x), in_numpy(model, x))


def test_weights_that_are_computed_are_refused() -> None:
    file = File(64, flat=True)
    made = file.add(
        "BinaryThreshold",
        file.pack("x"),
        {**file.weights(32, 64), **file.limits(32)},
        **GemmAttributes(channels=64).values(),
    )
    model = file.model(made)
    model.graph.node[1].input[1] = model.graph.node[0].output[0]
    with pytest.raises(ModelRefused, match=r"n1: its weights 'n0\.out' are computed"):
        with_plugins(model)


def test_gpus_are_told_apart_by_whether_they_count_bits() -> None:
    file, floats = layer()
    model = file.model(floats)
    bits, whole = lowerings(model, (75, 80, 86, 90, 120))
    assert (bits.sms, bits.has_plugins, whole.sms, whole.has_plugins) == ((80, 86, 90), True, (75, 120), False)
    assert (bits.said, whole.said) == ("bits, by plugins", "INT8 convolutions, exact")
    assert (bits.weight_bytes, whole.weight_bytes) == (40 * 24 * 4, 40 * 9 * 64)
    assert [one.sms for one in lowerings(model, (86, 89))] == [(86, 89)]
    (fp8,) = lowerings(model, (103,))
    assert fp8.said == "FP8 convolutions, exact"
    assert not has_binary_layers(whole.graph)
    plain = linear()
    assert lowerings(plain, (80, 120)) == [((80, 120), plain, "", {}, 0)]
    assert DOMAIN not in {node.domain for node in fp8.graph.graph.node}
