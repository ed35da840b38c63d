"""Batch normalization folded into what is before it: exact up to rounding, or refused with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.canonical import canonical
from engines.graphs import copy_of
from engines.passes.fold_batchnorm import fold_batchnorm
from tests.passes.answers import assert_same_answers, operators
from tests.support.onnx_models import FLOAT, Shape, build

node = helper.make_node
RNG = np.random.default_rng(0)


def stats(channels: int, kind: type = np.float32) -> dict[str, np.ndarray]:
    return {name: RNG.uniform(0.5, 2, channels).astype(kind) for name in ("gamma", "beta", "mean", "var")}


def normalized(
    op_type: str, weights: Shape, x: Shape, channels: int, bias: Shape | None = None, epsilon: float = 0.01,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """x -> op_type named `main` -> `h` -> BatchNormalization named `norm` -> y."""
    stored = {"W": RNG.standard_normal(weights, dtype=np.float32), **stats(channels)}
    if bias is not None:
        stored["B"] = RNG.standard_normal(bias, dtype=np.float32)
    nodes = [
        node(op_type, ["x", "W", *(["B"] if bias is not None else [])], ["h"], name="main", **attributes),
        node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["y"], name="norm", epsilon=epsilon),
    ]
    return build(nodes, {"x": (FLOAT, x)}, {"y": (FLOAT, [None] * len(x))}, stored, 21)


FOLDED = {
    "Conv": normalized("Conv", (6, 3, 3, 3), ("N", 3, 5, 5), 6, pads=[1, 1, 1, 1]),
    "Conv with bias": normalized("Conv", (6, 3, 3, 3), ("N", 3, 5, 5), 6, (6,), strides=[2, 2]),
    "Conv of groups": normalized("Conv", (6, 1, 3, 3), ("N", 3, 5, 5), 6, group=3),
    "Conv of one dimension": normalized("Conv", (4, 3, 2), ("N", 3, 9), 4, (4,)),
    "Conv of three": normalized("Conv", (4, 2, 2, 2, 2), ("N", 2, 4, 4, 4), 4, dilations=[2, 1, 1]),
    "ConvTranspose": normalized("ConvTranspose", (3, 4, 2, 2), ("N", 3, 5, 5), 4, (4,), strides=[2, 2]),
    "ConvTranspose of groups": normalized("ConvTranspose", (4, 3, 2, 2), ("N", 4, 3, 3), 6, group=2),
    "Gemm": normalized("Gemm", (7, 5), ("N", 7), 5, (5,)),
    "Gemm without bias": normalized("Gemm", (7, 5), ("N", 7), 5),
    "Gemm transposed and scaled": normalized("Gemm", (5, 7), ("N", 7), 5, (1, 5), transB=1, alpha=0.5, beta=3.0),
    "Gemm with one number": normalized("Gemm", (7, 5), ("N", 7), 5, (), beta=2.0),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name: str) -> None:
    model = FOLDED[name]
    after, note = fold_batchnorm(model)
    assert not note
    assert operators(after) == [model.graph.node[0].op_type]
    assert [(one.name, *one.output) for one in after.graph.node] == [("main", "y")]
    assert {tensor.name for tensor in after.graph.initializer} == {"W", "W_bias"}
    assert not after.graph.node[0].metadata_props
    assert_same_answers(model, after)


def changed(name: str = "Conv with bias") -> onnx.ModelProto:
    return copy_of(FOLDED[name])


def stored(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def shared_weights() -> onnx.ModelProto:
    model = changed()
    model.graph.node.append(node("Conv", ["x", "W"], ["z"], name="other", strides=[2, 2]))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [None] * 4))
    return model


def weights_as_output() -> onnx.ModelProto:
    model = changed()
    model.graph.output.append(helper.make_tensor_value_info("W", FLOAT, [6, 3, 3, 3]))
    return model


def statistic_as_output() -> onnx.ModelProto:
    model = changed()
    model.graph.output.append(helper.make_tensor_value_info("mean", FLOAT, [6]))
    return model


def training() -> onnx.ModelProto:
    model = changed()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["m2", "v2"])
    return model


def computed_scale() -> onnx.ModelProto:
    model = changed()
    stored(model, "gamma").name = "g"
    model.graph.node.insert(0, node("Abs", ["g"], ["gamma"]))
    return model


def negative_variance() -> onnx.ModelProto:
    model = changed()
    stored(model, "var").CopyFrom(numpy_helper.from_array(np.array([-1, 1, 1, 1, 1, 1], np.float32), "var"))
    return model


def too_large() -> onnx.ModelProto:
    model = changed()
    stored(model, "gamma").CopyFrom(numpy_helper.from_array(np.full(6, 3e38, np.float32), "gamma"))
    stored(model, "var").CopyFrom(numpy_helper.from_array(np.full(6, 1e-20, np.float32), "var"))
    model.graph.node[1].attribute[0].f = 0.0
    return model


def half_with_full_statistics() -> onnx.ModelProto:
    """Since opset 15 the statistics of a normalization in half precision may be in full."""
    inner = FOLDED["Conv"]
    model = copy_of(inner)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    weights = stored(model, "W")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), "W"))
    return model


LEFT = {
    "W is read by other nodes too": shared_weights,
    "W is an output": weights_as_output,
    "mean is an output": statistic_as_output,
    "it is training": training,
    "gamma is not stored beside it": computed_scale,
    "a variance is negative": negative_variance,
    "the folded weights would not be finite": too_large,
    "gamma is FLOAT, the weights FLOAT16": half_with_full_statistics,
}


@pytest.mark.parametrize("reason", LEFT)
def test_left_with_a_reason(reason: str) -> None:
    model = LEFT[reason]()
    onnx.checker.check_model(model)
    after, note = fold_batchnorm(model)
    assert after is model
    assert note == f"norm is left: {reason}"


def test_a_value_that_others_read_or_that_is_an_output_is_not_folded_away() -> None:
    read = changed()
    read.graph.node.append(node("Relu", ["h"], ["z"], name="relu"))
    read.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [None] * 4))
    given = changed()
    given.graph.output.append(helper.make_tensor_value_info("h", FLOAT, [None] * 4))
    for model in (read, given):
        assert fold_batchnorm(model)[0] is model


def test_a_shared_bias_and_a_taken_name_do_not_stand_in_the_way() -> None:
    model = changed()
    model.graph.node.append(node("Add", ["y", "W_bias"], ["z"], name="add"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "W_bias"))
    model.graph.node.append(node("Identity", ["B"], ["b"], name="bias"))
    for name, dims in (("z", [None] * 4), ("b", [6])):
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, dims))
    after, note = fold_batchnorm(model)
    assert not note
    assert "BatchNormalization" not in operators(after)
    assert list(after.graph.node[0].input) == ["x", "W", "W_bias_0"]
    assert_same_answers(model, after)


def test_one_of_two_is_folded_and_the_other_is_explained() -> None:
    model = changed()
    model.graph.node.extend(
        [node("Relu", ["y"], ["r"], name="relu"),
         node("BatchNormalization", ["r", "gamma", "beta", "mean", "var"], ["z"], name="second")],
    )  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [None] * 4))
    after, _ = fold_batchnorm(model)
    assert operators(after) == ["Conv", "Relu", "BatchNormalization"]
    assert_same_answers(model, after)


def test_half_precision_is_computed_in_double_and_rounded_once() -> None:
    model = half_with_full_statistics()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    after, _ = fold_batchnorm(model)
    weights, gamma, var = (numpy_helper.to_array(stored(model, n)).astype(np.float64) for n in ("W", "gamma", "var"))
    exact = weights * (gamma / np.sqrt(var + 0.01)).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(numpy_helper.to_array(stored(after, "W")), exact.astype(np.float16))


def test_sparse_weights_stay_what_they_are() -> None:
    model = changed()
    values, at = np.array([2], np.float32), np.array([1], np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "sparse"), numpy_helper.from_array(at, "at"), [1, 1, 2, 2]
    )
    model.graph.sparse_initializer.append(sparse)
    model.graph.node.append(node("Add", ["y", "sparse"], ["z"], name="add"))
    model.graph.output[0].name = "z"
    after, note = fold_batchnorm(model)
    assert after is model
    assert note == "nothing is folded: the rewriter would lose the sparse weights"
    after, changes = canonical(model)
    assert len(after.graph.sparse_initializer) == 1
    assert [change.note for change in changes if change.note] == [note]
