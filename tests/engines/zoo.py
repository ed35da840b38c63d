"""Models of the batch proof: what is batched, what is not, and what tries to fool it. Dimension names mean nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.onnx_models import FLOAT, Shape, add_sub, build, linear, softmax_over_batch, time_major_lstm

__all__ = ["BATCHED", "FIXED_ONE", "NOT_BATCHED", "elementwise"]

Make = Callable[[], onnx.ModelProto]
Table = dict[str, tuple[int, Shape]]
INT64 = TensorProto.INT64
node = helper.make_node


def _random(*shape: int, scale: float = 0.3) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _float(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray] | None = None, *, x: Shape = ("N", 8),
           y: Shape = ("N", 8), opset: int = 17) -> onnx.ModelProto:  # fmt: skip
    return build(nodes, {"x": (FLOAT, x)}, {"y": (FLOAT, y)}, stored, opset)


def cnn(batch: int | str = "N", flatten: str = "Flatten") -> onnx.ModelProto:
    """Conv, ReLU, pool, and a flatten: the op, or a Reshape to [1, -1] as exports of one row have it."""
    last = node(flatten, ["p", "shape"] if flatten == "Reshape" else ["p"], ["f"])
    return _float(
        [
            node("Conv", ["x", "K"], ["c"], kernel_shape=[3, 3]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            last,
            node("MatMul", ["f", "W"], ["y"]),
        ],
        {
            "K": _random(4, 1, 3, 3),
            "W": _random(36, 5),
            **({"shape": _ints(1, -1)} if flatten == "Reshape" else {}),
        },
        x=(batch, 1, 8, 8),
        y=(batch, 5),
    )


def tokens(*, argmax: bool = False) -> onnx.ModelProto:
    """INT64 token numbers -> embedding -> mean over the tokens [-> argmax, an integer output]."""
    nodes = [node("Gather", ["E", "x"], ["e"]), node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0)]
    nodes.append(node("ArgMax", ["m"], ["y"], axis=1, keepdims=0) if argmax else node("Identity", ["m"], ["y"]))
    output = (INT64, ["N"]) if argmax else (FLOAT, ["N", 6])
    return build(nodes, {"x": (INT64, ["N", "T"])}, {"y": output}, {"E": _random(100, 6)})


def lstm_with_state(*, state_input: bool, batch: int | str = "N", zero_state: bool = False) -> onnx.ModelProto:
    """x [N, T, 3] through an LSTM; gives its last hidden state [1, N, 8], rows along axis 1."""
    states = ["h0", "c0"] if state_input or zero_state else ["", ""]
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        node("LSTM", ["xt", "W", "R", "", "", *states], ["", "h", "c"], hidden_size=8),
    ]
    stored = {"W": _random(1, 32, 3), "R": _random(1, 32, 8)}
    if zero_state:
        stored |= {name: np.zeros((1, 1, 8), np.float32) for name in states}
    inputs: Table = {"x": (FLOAT, [batch, "T", 3])}
    if state_input:
        inputs |= {name: (FLOAT, [1, batch, 8]) for name in states}
    return build(nodes, inputs, {"h": (FLOAT, [1, batch, 8]), "c": (FLOAT, [1, batch, 8])}, stored)


def two_layer_state() -> onnx.ModelProto:
    """A state input [layers, N, 4] beside x [N, 4]: y = x + state[0] * state[1], and the state moved on."""
    return build(
        [
            node("Gather", ["s", "zero"], ["s0"], axis=0),
            node("Gather", ["s", "one"], ["s1"], axis=0),
            node("Mul", ["s0", "s1"], ["p"]),
            node("Add", ["x", "p"], ["y"]),
            node("Tanh", ["s"], ["s_out"]),
        ],
        {"x": (FLOAT, ["N", 4]), "s": (FLOAT, [2, "N", 4])},
        {"y": (FLOAT, ["N", 4]), "s_out": (FLOAT, [2, "N", 4])},
        {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)},
    )


def reshape_inside(batch: int | str = 1) -> onnx.ModelProto:
    """[1, T, 4] -> transposed -> Reshape to [6, 1, 4]: the batch is the second number of the constant shape."""
    return _float(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("Reshape", ["t", "shape"], ["r"]),
            node("Transpose", ["r"], ["b"], perm=[1, 0, 2]),
            node("Reshape", ["k", "one_row"], ["bias"]),
            node("Add", ["b", "bias"], ["y"]),
        ],
        {"shape": _ints(6, 1, 4), "k": _random(4), "one_row": _ints(1, 1, 4)},
        x=(batch, 6, 4),
        y=(batch, 6, 4),
    )


def elementwise(kind: int, operator: str = "Add", out: int = 0) -> onnx.ModelProto:
    """y = a <operator> b, of any element type."""
    table = (kind, ["N", 4])
    return build([node(operator, ["a", "b"], ["y"])], {"a": table, "b": table}, {"y": (out or kind, ["N", 4])})


def _plus_mean(weight: float) -> onnx.ModelProto:
    return _float(
        [
            node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            node("Mul", ["m", "weak"], ["w"]),
            node("Add", ["x", "w"], ["y"]),
        ],
        {"weak": np.array(weight, np.float32)},
    )


def _plus_weak_maximum() -> onnx.ModelProto:
    nodes = [node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1), node("Mul", ["m", "weak"], ["w"])]
    return _float([*nodes, node("Add", ["x", "w"], ["y"])], {"weak": np.array(1e-25, np.float32)})


def _branch_on_the_data() -> onnx.ModelProto:
    """All rows are doubled where any value is above 50."""
    value = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("t", "e")]
    twice = helper.make_graph([node("Add", ["x", "x"], ["t"])], "then", [], value[:1])
    same = helper.make_graph([node("Identity", ["x"], ["e"])], "else", [], value[1:])
    return _float(
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Greater", ["m", "limit"], ["c"]),
            node("If", ["c"], ["y"], then_branch=twice, else_branch=same),
        ],
        {"limit": np.array(50, np.float32)},
    )


def _batch_norm_of_the_batch() -> onnx.ModelProto:
    return _float(
        [
            node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            node("Sub", ["x", "m"], ["d"]),
            node("Mul", ["d", "d"], ["q"]),
            node("ReduceMean", ["q"], ["v"], axes=[0], keepdims=1),
            node("Add", ["v", "eps"], ["ve"]),
            node("Sqrt", ["ve"], ["s"]),
            node("Div", ["d", "s"], ["n"]),
            node("Add", ["n", "x"], ["y"]),
        ],
        {"eps": np.array(1e-3, np.float32)},
    )


def _divided_by_rows() -> onnx.ModelProto:
    return _float(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Cast", ["n"], ["f"], to=FLOAT),
            node("Div", ["x", "f"], ["y"]),
        ],
        {"zero": np.array(0, np.int64)},
    )


def large_batches_doubled(rows: int) -> onnx.ModelProto:
    """y = 2 x in batches of more than `rows`, else x."""
    return _float(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Greater", ["n", "limit"], ["many"]),
            node("Add", ["x", "x"], ["twice"]),
            node("Where", ["many", "twice", "x"], ["y"]),
        ],
        {"zero": np.array(0, np.int64), "limit": np.array(rows, np.int64)},
    )


def _mixed_at(comparison: str, length: int) -> onnx.ModelProto:
    """x [N, T, 4]: rows are independent, except at lengths `comparison` than `length`: their mean is added there."""
    return _float(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "one"], ["t"]),
            node(comparison, ["t", "length"], ["mixes"]),
            node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            node("Where", ["mixes", "m", "zero"], ["w"]),
            node("Add", ["x", "w"], ["y"]),
        ],
        {"one": np.array(1, np.int64), "length": np.array(length, np.int64), "zero": np.float32(0)},
        x=("N", "T", 4),
        y=("N", "T", 4),
    )


def short_sequences() -> onnx.ModelProto:
    """Learned positions for 50 tokens: x [N, T, 4] with T <= 50."""
    return _float(
        [
            node("Shape", ["x"], ["s"]),
            node("Slice", ["s", "one", "two"], ["t"]),
            node("Slice", ["P", "nil", "t"], ["p"]),
            node("Add", ["x", "p"], ["y"]),
        ],
        {"P": _random(50, 4), "one": _ints(1), "two": _ints(2), "nil": _ints(0)},
        x=("N", "T", 4),
        y=("N", "T", 4),
    )


def _rolled_by_six() -> onnx.ModelProto:
    return _float(
        [node("Slice", ["x", "m6", "end", "axis"], ["a"]), node("Slice", ["x", "zero", "m6", "axis"], ["b"]),
         node("Concat", ["a", "b"], ["y"], axis=0)],
        {"m6": _ints(-6), "end": _ints(2**31), "zero": _ints(0), "axis": _ints(0)},
    )  # fmt: skip


def _hidden_beside_large_numbers() -> onnx.ModelProto:
    """Whole numbers in (so no NaN); the mixing is 1e-12 of the largest answer."""
    return build(
        [
            node("Cast", ["x"], ["f"], to=FLOAT),
            node("Mul", ["f", "huge"], ["h"]),
            node("ReduceMean", ["f"], ["m"], axes=[0], keepdims=1),
            node("Mul", ["f", "zero"], ["z"]),
            node("Add", ["z", "m"], ["mixed"]),
            node("Concat", ["h", "mixed"], ["y"], axis=1),
        ],
        {"x": (TensorProto.INT32, ["N", 4])},
        {"y": (FLOAT, ["N", 8])},
        {"huge": np.array(1e12, np.float32), "zero": np.array(0, np.float32)},
    )


def _alarm() -> onnx.ModelProto:
    """One extreme row changes all others."""
    return _float(
        [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Greater", ["m", "limit"], ["a"]),
            node("Cast", ["a"], ["f"], to=FLOAT),
            node("Add", ["x", "f"], ["y"]),
        ],
        {"limit": np.array(1000, np.float32)},
    )


def _top_rows() -> onnx.ModelProto:
    return _float([node("TopK", ["x", "k"], ["y", "i"], axis=0)], {"k": _ints(1)}, y=(1, 8))


def _sorted_rows() -> onnx.ModelProto:
    shape = [node("Shape", ["x"], ["s"]), node("Slice", ["s", "zero", "one"], ["n"])]
    return _float([*shape, node("TopK", ["x", "n"], ["y", "i"], axis=0)], {"zero": _ints(0), "one": _ints(1)})


def _quantized() -> onnx.ModelProto:
    scale, zero = "scale", "zero"
    return _float(
        [node("DynamicQuantizeLinear", ["x"], ["q", scale, zero]), node("DequantizeLinear", ["q", scale, zero], ["y"])]
    )


def _scalar_beside() -> onnx.ModelProto:
    inputs: Table = {"x": (FLOAT, ["N", 8]), "t": (FLOAT, [])}
    return build([node("Mul", ["x", "t"], ["y"])], inputs, {"y": (FLOAT, ["N", 8])})


def _cloud_of_points() -> onnx.ModelProto:
    """x [points, 3] is one sample: reshaped to [1, points, 3], and the maximum over its points is the answer."""
    return _float(
        [
            node("Reshape", ["x", "shape"], ["cloud"]),
            node("MatMul", ["cloud", "W"], ["f"]),
            node("ReduceMax", ["f"], ["y"], axes=[1], keepdims=0),
        ],
        {"shape": _ints(1, -1, 3), "W": _random(3, 5)},
        x=("points", 3),
        y=(1, 5),
    )


def _misleading_names() -> onnx.ModelProto:
    """The output's first dimension is called like the input's, and is not: a mean over the rows, said to be [N, 8]."""
    model = _float([node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)], x=("batch", 8), y=("batch", 8))
    return model


def _reversed_rows() -> onnx.ModelProto:
    stored = {"start": _ints(-1), "end": _ints(-(2**31)), "axis": _ints(0), "step": _ints(-1)}
    return _float([node("Slice", ["x", "start", "end", "axis", "step"], ["y"])], stored)


def _outer_product() -> onnx.ModelProto:
    return _float([node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])], y=("N", "N"))


def _argmax_against_the_mean() -> onnx.ModelProto:
    return build(
        [
            node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            node("Mul", ["m", "weak"], ["w"]),
            node("Sub", ["x", "w"], ["d"]),
            node("ArgMax", ["d"], ["y"], axis=1, keepdims=0),
        ],
        {"x": (FLOAT, ["N", 8])},
        {"y": (INT64, ["N"])},
        {"weak": np.array(0.01, np.float32)},
    )


BATCHED: dict[str, tuple[Make, dict[str, int]]] = {
    "linear": (linear, {"x": 0, "y": 0}),
    "linear of strange names": (lambda: linear(batch="time"), {"x": 0, "y": 0}),
    "batch-first LSTM": (lambda: time_major_lstm(batch_first=True), {"x": 0, "y": 0}),
    "CNN": (cnn, {"x": 0, "y": 0}),
    "token numbers": (tokens, {"x": 0, "y": 0}),
    "positions for short sequences": (short_sequences, {"x": 0, "y": 0}),
    "argmax": (lambda: tokens(argmax=True), {"x": 0, "y": 0}),
    "add_sub": (add_sub, {"INPUT0": 0, "INPUT1": 0, "OUTPUT0": 0, "OUTPUT1": 0}),
    "LSTM giving its state": (lambda: lstm_with_state(state_input=False), {"x": 0, "h": 1, "c": 1}),
    "LSTM taking its state": (
        lambda: lstm_with_state(state_input=True), {"x": 0, "h0": 1, "c0": 1, "h": 1, "c": 1},
    ),
    "state of two layers": (two_layer_state, {"x": 0, "s": 1, "y": 0, "s_out": 1}),
}  # fmt: skip

FIXED_ONE: dict[str, tuple[Make, dict[str, int]]] = {
    "linear": (lambda: linear(batch=1), {"x": 0, "y": 0}),
    "Reshape to [1, -1]": (lambda: cnn(1, "Reshape"), {"x": 0, "y": 0}),
    "Flatten": (lambda: cnn(1), {"x": 0, "y": 0}),
    "zero initial state": (
        lambda: lstm_with_state(state_input=False, batch=1, zero_state=True), {"x": 0, "h": 1, "c": 1},
    ),
    "Reshape with the batch inside": (reshape_inside, {"x": 0, "y": 0}),
}  # fmt: skip

TOUCH, NO_AXIS = "rows touch each other", "no batch axis"
NOT_CARRIED = "does not carry the batch axis"
NOT_BATCHED: dict[str, tuple[Make, str]] = {
    "time-major LSTM": (time_major_lstm, TOUCH),
    "dynamic quantization": (_quantized, TOUCH),
    "softmax over the batch": (softmax_over_batch, TOUCH),
    "mean over the batch": (
        lambda: _float([node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)], y=(8,)), NOT_CARRIED,
    ),
    "mean that is named a batch": (_misleading_names, NOT_CARRIED),
    "reversed rows": (_reversed_rows, TOUCH),
    "cumulative sum": (lambda: _float([node("CumSum", ["x", "a"], ["y"])], {"a": np.array(0, np.int64)}), TOUCH),
    "a weak mixing": (lambda: _plus_mean(1e-30), TOUCH),
    "a weak maximum": (_plus_weak_maximum, TOUCH),
    "normalized by the batch, as in training": (
        lambda: _float([node("BatchNormalization", ["x", *"sbmv"], ["y", "rm", "rv"], training_mode=1)],
                       {k: np.ones(8, np.float32) for k in "sbmv"}),
        TOUCH,
    ),
    "a branch on the data": (_branch_on_the_data, TOUCH),
    "normalized over the batch": (_batch_norm_of_the_batch, TOUCH),
    "first row taken away": (
        lambda: _float(
            [node("Slice", ["x", "zero", "one", "zero"], ["f"]), node("Sub", ["x", "f"], ["d"]),
             node("Add", ["d", "x"], ["y"])],
            {"zero": _ints(0), "one": _ints(1)},
        ),
        TOUCH,
    ),
    "fixed batch of 4": (lambda: linear(batch=4), NO_AXIS),
    "a scalar input": (_scalar_beside, NO_AXIS),
    "shape from the data": (
        lambda: build([node("NonZero", ["x"], ["y"])], {"x": (FLOAT, ["N", 4])}, {"y": (INT64, [2, "K"])}), "",
    ),
    "a cloud of points": (_cloud_of_points, NOT_CARRIED),
    "pairwise products": (_outer_product, NOT_CARRIED),
    "divided by the number of rows": (_divided_by_rows, TOUCH),
    "top row": (_top_rows, NOT_CARRIED),
    "sorted rows": (_sorted_rows, TOUCH),
    "other answers in batches over 20": (lambda: large_batches_doubled(20), TOUCH),
    "mixed in long sequences": (lambda: _mixed_at("Greater", 60), f"variable dimensions of 75: {TOUCH}"),
    "mixed in short sequences": (lambda: _mixed_at("Less", 16), f"variable dimensions of 13: {TOUCH}"),
    "rolled by as many rows as there are samples": (_rolled_by_six, TOUCH),
    "hidden beside large numbers": (_hidden_beside_large_numbers, TOUCH),
    "an extreme row": (_alarm, TOUCH),
    "argmax against the mean": (_argmax_against_the_mean, TOUCH),
}  # fmt: skip
