"""The graph that TensorRT runs with half precision: types, conversions, constants; ONNX Runtime runs it too."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.canonical import canonical
from engines.passes.half import to_half
from engines.reference import Reference
from tests.passes.answers import operators, rows_of
from tests.passes.halves import HALF, half_of, mlp, overflowing, quantized, types_of, with_bodies
from tests.passes.networks import encoder, light, recurrent
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4), dtype=F32)
SQUARE: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, [4, 4])}
RESULT: dict[str, tuple[int, list[int | str]]] = {"y": (FLOAT, [4, 4])}


def conversions(model: onnx.ModelProto) -> Counter[int]:
    """How many Casts to each type."""
    return Counter(one.attribute[0].i for one in model.graph.node if one.op_type == "Cast")


def stored(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize(("name", "stays"), [("squeezenet", 0), ("inception_v1", 2), ("densenet121", 1)])
def test_cnns_are_half_from_the_first_layer_to_the_last(name: str, stays: int) -> None:
    """`stays`: how many nodes in between stay in FP32 (local normalizations, a mean over the picture)."""
    model, _ = canonical(light(name))
    half = half_of(model)
    types = types_of(half)
    convolutions = [one.name for one in half.graph.node if one.op_type == "Conv"]
    assert all(types[one] == ({HALF}, {HALF}) for one in convolutions)
    assert conversions(half)[HALF] == 1 + stays, "at the input, and behind what stays in FP32"
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert sum(len(tensor.raw_data) for tensor in half.graph.initializer) < 0.52 * weights
    row = rows_of(model)[0]
    for output, want in Reference(model)(row).items():
        got = Reference(half)(row)[output]
        assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_recurrent_networks(op_type: str) -> None:
    model, _ = canonical(recurrent(op_type))
    half = half_of(model)
    assert all(made == {HALF} for name, (_, made) in types_of(half).items() if name.startswith(op_type))
    assert conversions(half) == {HALF: 1, FLOAT: 1}
    row = rows_of(model)[0]
    np.testing.assert_allclose(Reference(half)(row)["y"], Reference(model)(row)["y"], atol=2**-8)


def test_a_recurrent_layer_with_lengths_stays_beside_one_without() -> None:
    model, _ = canonical(recurrent("LSTM", layers=2, with_lengths=True))
    model.graph.node[-3].input.pop()  # the second layer's
    half = half_of(model)
    assert [types_of(half)[f"LSTM_{i}"] for i in (0, 1)] == [({FLOAT}, {FLOAT}), ({HALF}, {HALF})]


def test_a_transformer() -> None:
    model, _ = canonical(encoder(opset=18))
    half = half_of(model)
    types = types_of(half)
    for one in half.graph.node:
        want = {"MatMul": HALF, "Softmax": FLOAT, "ReduceMean": FLOAT, "Pow": FLOAT, "Gather": HALF}.get(one.op_type)
        assert want is None or types[one.name][1] == {want}
    assert stored(half)["E.half"] == HALF
    row = {"x": RNG.integers(0, 50, (2, 9))}
    want, got = (Reference(one)(row)["y"] for one in (model, half))
    assert 0 < np.abs(got - want).max() < 0.01


def test_a_quantized_network_has_no_conversion_between_its_layers() -> None:
    model, _ = canonical(light("squeezenet"))
    rows = rows_of(model, count=3)
    int8 = quantized(model, rows)
    half = half_of(int8)
    types = types_of(half)
    assert operators(half).count("DequantizeLinear") == operators(int8).count("DequantizeLinear") > 50
    for one in half.graph.node:
        if one.op_type == "Conv":
            assert types[one.name] == ({HALF}, {HALF})
    assert conversions(half) == {}, "none at the ends either: the input is quantized, the last layer stays in FP32"
    want, got = (Reference(one)(rows[0]) for one in (int8, half))
    for name, array in want.items():
        assert np.abs(got[name] - array).max() < 0.02 * np.abs(array).max()


def dequantized(scale: float, *more: onnx.NodeProto) -> onnx.ModelProto:
    nodes = [node("DequantizeLinear", ["q", "scale"], ["w"], "dq"), node("MatMul", ["x", "w"], ["y"], "product"), *more]
    constants = {"q": RNG.integers(-127, 127, (4, 4)).astype(np.int8), "scale": F32(scale)}
    return build(nodes, SQUARE, RESULT, constants, 21)


def test_a_scale_that_half_cannot_hold_keeps_the_layer_too() -> None:
    """A Cast between a DequantizeLinear and its layer would keep a target from running that one in INT8."""
    held = types_of(half_of(dequantized(2.0**-14)))
    assert held["product"] == held["dq"] == ({HALF}, {HALF})
    model = dequantized(2.0**-14 * 0.99)
    assert to_half(model)[0] is model
    assert "half has all its digits" in to_half(model)[1]


def test_what_is_dequantized_for_two_is_made_in_both_types() -> None:
    model = dequantized(0.01)
    model.graph.node.append(node("Softmax", ["w"], ["p"], "softmax"))
    model.graph.output.append(helper.make_tensor_value_info("p", FLOAT, [4, 4]))
    half = half_of(model)
    assert conversions(half) == {HALF: 1, FLOAT: 1}, "of the input and the output alone"
    types = types_of(half)
    assert (types["dq"][1], types["dq.half"][1]) == ({FLOAT}, {HALF})
    assert stored(half) == {"q": TensorProto.INT8, "scale": FLOAT, "scale.half": HALF}


def test_a_cast_to_fp32_goes_where_it_is_read() -> None:
    nodes = [
        node("Cast", ["mask"], ["m"], "cast", to=FLOAT), node("MatMul", ["x", "W"], ["a"], "product"),
        node("Mul", ["a", "m"], ["y"], "masked"),
    ]  # fmt: skip
    inputs = {**SQUARE, "mask": (TensorProto.BOOL, [4, 4])}
    alone = half_of(build(nodes, inputs, RESULT, {"W": W}, 21))
    assert types_of(alone)["cast"][1] == {HALF}
    summed = [*nodes, node("ReduceSum", ["m"], ["n"], "count", keepdims=0)]
    both = half_of(build(summed, inputs, {**RESULT, "n": (FLOAT, [])}, {"W": W}, 21))
    assert (types_of(both)["cast"][1], types_of(both)["cast.half"][1]) == ({FLOAT}, {HALF})
    row = {"x": W, "mask": np.eye(4, dtype=bool)}
    assert Reference(both)(row)["n"] == 4


def test_casts_from_fp32_read_what_there_is() -> None:
    nodes = [
        node("MatMul", ["x", "W"], ["a"]), node("Cast", ["a"], ["i"], "whole", to=TensorProto.INT32),
        node("Cast", ["a"], ["f"], "idle", to=FLOAT), node("Cast", ["f"], ["d"], "wide", to=TensorProto.DOUBLE),
    ]  # fmt: skip
    model = build(nodes, SQUARE, {"i": (TensorProto.INT32, [4, 4]), "d": (TensorProto.DOUBLE, [4, 4])}, {"W": W}, 21)
    half = half_of(model)
    assert conversions(half) == {HALF: 2, TensorProto.INT32: 1, TensorProto.DOUBLE: 1}


def test_a_mask_of_the_lowest_number_gives_no_nan() -> None:
    """A row without a single place that counts: exports write the lowest FP32 number there, and softmax is even."""
    nodes = [
        node("MatMul", ["x", "W"], ["a"]), node("Where", ["mask", "a", "low"], ["m"], "where"),
        node("Softmax", ["m"], ["p"]), node("MatMul", ["p", "W"], ["y"]),
    ]  # fmt: skip
    lowest = np.finfo(F32).min
    model = build(nodes, {**SQUARE, "mask": (TensorProto.BOOL, [4, 4])}, RESULT, {"W": W, "low": lowest}, 21)
    half = half_of(model)
    assert types_of(half)["where"] == ({FLOAT}, {FLOAT})
    assert numpy_helper.to_array(next(t for t in half.graph.initializer if t.name == "low")) == lowest
    row = {"x": W, "mask": np.array([[0] * 4, [1, 0, 0, 1], [1] * 4, [0, 0, 0, 1]], bool)}
    np.testing.assert_allclose(Reference(half)(row)["y"], Reference(model)(row)["y"], atol=2**-7)


def test_weights_that_overflow_keep_their_layer() -> None:
    model = build([node("MatMul", ["x", "L"], ["a"], "large"), node("MatMul", ["a", "W"], ["y"], "small")],
                  SQUARE, RESULT, {"L": W * F32(1e6), "W": W}, 21)  # fmt: skip
    assert types_of(half_of(model))["large"] == ({FLOAT}, {FLOAT})
    assert stored(half_of(model)) == {"L": FLOAT, "W.half": HALF}


def test_scales_of_resize_stay_in_fp32() -> None:
    nodes = [
        node("Conv", ["x", "K"], ["a"], "conv"), node("Resize", ["a", "", "scales"], ["r"], "resize", mode="linear"),
        node("Conv", ["r", "K"], ["y"], "next"),
    ]  # fmt: skip
    kernel = RNG.standard_normal((1, 1, 1, 1), dtype=F32)
    constants = {"K": kernel, "scales": np.array([1, 1, 2, 2], F32)}
    half = half_of(build(nodes, {"x": (FLOAT, [1, 1, 4, 4])}, {"y": (FLOAT, [1, 1, 8, 8])}, constants, 21))
    assert stored(half)["scales"] == FLOAT
    assert types_of(half)["resize"] == ({FLOAT, HALF}, {HALF})


def test_operators_of_fixed_types_are_given_fp32() -> None:
    nodes = [
        node("MatMul", ["x", "W"], ["a"], "boxes"), node("Reshape", ["a", "shape"], ["b"]),
        node("NonMaxSuppression", ["b", "scores"], ["s"], "nms"), node("RandomNormalLike", ["a"], ["n"], "noise"),
        node("Add", ["a", "n"], ["y"], "add"),
    ]  # fmt: skip
    inputs = {**SQUARE, "scores": (FLOAT, [1, 1, 4])}
    outputs = {**RESULT, "s": (TensorProto.INT64, ["K", 3])}
    half = half_of(build(nodes, inputs, outputs, {"W": W, "shape": np.array([1, 4, 4])}, 21))
    types = types_of(half)
    assert types["nms"][0] == {FLOAT}
    assert types["noise"] == ({FLOAT}, {FLOAT})
    assert types["add"] == ({HALF}, {HALF})


def test_bodies_stay_as_they_are_and_see_fp32_around_them() -> None:
    model = with_bodies()
    half = half_of(model)
    types = types_of(half)
    assert types["before"] == types["after"] == ({HALF}, {HALF})
    assert stored(half) == {"W": FLOAT, "W.half": HALF}
    assert half.graph.node[3].attribute == model.graph.node[1].attribute
    for flag in (True, False):
        row = {"x": W, "flag": np.array(flag)}
        np.testing.assert_allclose(Reference(half)(row)["y"], Reference(model)(row)["y"], rtol=0.01, atol=0.02)


def test_a_loop_stays_whole() -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", ["s", "W"], ["t"]), node("Identity", ["c"], ["d"])], "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("s", FLOAT, [4, 4])],
        [value("d", TensorProto.BOOL, []), value("t", FLOAT, [4, 4])],
    )  # fmt: skip
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Loop", ["times", "", "a"], ["y"], "loop", body=body)]
    model = build(nodes, SQUARE, RESULT, {"W": W, "times": np.array(2)}, 21)
    half = half_of(model)
    assert types_of(half)["loop"] == ({FLOAT}, {FLOAT})
    assert "its bodies stay as they are" in to_half(model)[1]
    np.testing.assert_allclose(Reference(half)({"x": W})["y"], W @ W @ W @ W, rtol=0.01, atol=0.05)


def test_names_that_are_missing_taken_or_there_twice() -> None:
    nodes = [
        node("MatMul", ["x", "W"], ["a.half"]), node("MatMul", ["a.half", "W"], ["a"], "twice"),
        node("Softmax", ["a"], ["p"], "twice"), node("MatMul", ["p", "W"], ["y"], "a.half.to_half"),
    ]  # fmt: skip
    model = build(nodes, SQUARE, RESULT, {"W": W}, 21)
    half = half_of(model)
    assert Counter(operators(half))["MatMul"] == 3
    names = [one.name for one in half.graph.node if one.op_type == "Cast"]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(Reference(half)({"x": W})["y"], _softmax(W @ W @ W) @ W, rtol=0.02, atol=0.02)


def _softmax(x: np.ndarray) -> np.ndarray:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def test_kept_nodes_and_weights_of_two_types() -> None:
    """One weight for two layers, of which one is kept."""
    nodes = [node("MatMul", ["x", "W"], ["a"], "one"), node("MatMul", ["a", "W"], ["y"], "two")]
    model = build(nodes, SQUARE, RESULT, {"W": W}, 21)
    half = half_of(model, {"one"})
    assert [types_of(half)[name][0] for name in ("one", "two")] == [{FLOAT}, {HALF}]
    assert stored(half) == {"W": FLOAT, "W.half": HALF}
    assert to_half(model, {"one", "two"})[0] is model


def test_outputs_that_are_read_inside_too_keep_their_type() -> None:
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Relu", ["a"], ["y"]), node("Identity", ["x"], ["z"])]
    model = build(nodes, SQUARE, {**RESULT, "a": (FLOAT, [4, 4]), "z": (FLOAT, [4, 4])}, {"W": W}, 21)
    got = Reference(half_of(model))({"x": W})
    np.testing.assert_array_equal(np.maximum(got["a"], 0), got["y"])
    np.testing.assert_array_equal(got["z"], W)


def test_the_note_counts_and_gives_reasons() -> None:
    model, _ = canonical(encoder(opset=18))
    _, note = to_half(model)
    assert note.startswith("57 nodes run in half precision; Softmax (nodes 'Softmax_0', 'Softmax_1') in FP32: exponent")


def test_an_older_opset_and_stored_constants_in_nodes() -> None:
    constant = node("Constant", [], ["W"], value=numpy_helper.from_array(W))
    model = build([constant, node("MatMul", ["x", "W"], ["y"])], SQUARE, RESULT, {}, 13)
    assert stored(half_of(model)) == {"W.half": HALF}


def test_values_that_are_described_have_their_new_types() -> None:
    model = onnx.shape_inference.infer_shapes(overflowing())
    half = half_of(model, {"large"})
    described = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    assert described == {"a": FLOAT, "a.half": HALF, "b.half": HALF, "t.half": HALF}


def test_nothing_to_do() -> None:
    whole = mlp({"V": W, "b": W[0], "W": W, "c": W[0]})
    twice = half_of(whole)
    again, _ = to_half(twice)
    assert again.graph.node == twice.graph.node
