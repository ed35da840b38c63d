"""One small model for every operator whose form changed between opset 7 and 25: attributes that became inputs and such.

Each is float32 [2, 3, 4, 4] in unless said otherwise; what it answers is ONNX Runtime's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.onnx_models import FLOAT, Shape, build

__all__ = ["OPERATORS", "body_of", "one_node", "scan_8"]

node = helper.make_node
_IMAGE: Shape = (2, 3, 4, 4)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def one_node(
    op_type: str, opset: int, stored: Sequence[np.ndarray] = (), shape: Shape = _IMAGE, outputs: int = 1,
    kind: int = FLOAT, **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """x -> op_type -> y; `stored` are its further inputs, in order, as initializers."""
    names = [f"c{i}" for i in range(len(stored))]
    ys = ["y", *(f"y{i}" for i in range(1, outputs))]
    nodes = [node(op_type, ["x", *names], ys, name="it", **attributes)]
    return _with_output_shape(
        build(nodes, {"x": (FLOAT, shape)}, {"y": (kind, [])}, dict(zip(names, stored, strict=True)), opset)
    )


def _with_output_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(model)
    return model


def body_of(inner: list[onnx.NodeProto], opset: int, stored: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """y = x summed over `inner` (x -> b) where the sum of x is positive, else x as `inner` makes of it twice."""
    twice = [*inner, node("Add", ["b", "b"], ["e"])]
    value = helper.make_tensor_value_info
    attributes: dict[str, Any] = {
        "then_branch": helper.make_graph(inner, "then", [], [value("b", FLOAT, None)]),
        "else_branch": helper.make_graph(twice, "else", [], [value("e", FLOAT, None)]),
    }
    axes = {"axes": [0, 1, 2, 3]} if opset < 18 else {}
    nodes = [
        node("ReduceMean", ["x"], ["m"], keepdims=0, **axes),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], **attributes),
    ]
    stored = {"zero": np.float32(0), **(stored or {})}
    return _with_output_shape(build(nodes, {"x": (FLOAT, [2, 1, 4, 4])}, {"y": (FLOAT, [])}, stored, opset))


def scan_8() -> onnx.ModelProto:
    """Running sums over axis 1, with Scan as opset 8 had it: a batch axis, and the lengths as first input."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["s", "v"], ["t"]), node("Identity", ["t"], ["o"])], "body",
        [value("s", FLOAT, [3]), value("v", FLOAT, [3])], [value("t", FLOAT, [3]), value("o", FLOAT, [3])],
    )  # fmt: skip
    nodes = [node("Scan", ["", "start", "x"], ["end", "y"], body=body, num_scan_inputs=1)]
    start = {"start": np.zeros((2, 3), np.float32)}
    return build(nodes, {"x": (FLOAT, [2, 5, 3])}, {"y": (FLOAT, [2, 5, 3])}, start, opset=8)


_STATS = [np.array(v, np.float32) for v in ([1, 2, 3], [0.1, -1, 2], [0.5, 0, -1], [1, 2, 0.5])]
_LOOK_UP = _ints(0, 1, 1, 0).reshape(2, 2)
_SCALES = np.array([1, 1, 2, 2], np.float32)
_ROIS = np.array([[0, 0, 3, 3], [1, 1, 3, 2]], np.float32)

OPERATORS: dict[str, onnx.ModelProto] = {
    "BatchNormalization 7": one_node("BatchNormalization", 7, _STATS, momentum=0.9, epsilon=1e-3),
    "BatchNormalization 9": one_node("BatchNormalization", 9, _STATS, momentum=0.9),
    "BatchNormalization 14": one_node("BatchNormalization", 14, _STATS),
    "Clip 7": one_node("Clip", 7, min=-0.5, max=0.5),
    "Clip 7 of one side": one_node("Clip", 7, max=0.5),
    "Constant pad 7": one_node("Pad", 7, pads=[0, 0, 1, 1, 0, 0, 2, 2], value=3.0),
    "DepthToSpace 7": one_node("DepthToSpace", 7, shape=(1, 8, 2, 2), blocksize=2),
    "Dropout 7": one_node("Dropout", 7, ratio=0.4),
    "Dropout 10": one_node("Dropout", 10, ratio=0.4),
    "Dropout 12": one_node("Dropout", 12, [np.float32(0.4)]),
    "Flatten 7": one_node("Flatten", 7, axis=2),
    "Hardmax 7": one_node("Hardmax", 7, shape=(2, 3, 4), axis=1),
    "LogSoftmax 7": one_node("LogSoftmax", 7, shape=(2, 3, 4), axis=1),
    "MaxPool 8": one_node("MaxPool", 8, kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
    "AveragePool 7": one_node("AveragePool", 7, kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
    "PRelu 7": one_node("PRelu", 7, [np.array([[[0.1]], [[0.2]], [[0.3]]], np.float32)]),
    "Reflect pad 7": one_node("Pad", 7, mode="reflect", pads=[0, 0, 1, 1, 0, 0, 2, 2]),
    "Resize 10": one_node("Resize", 10, [_SCALES], mode="linear"),
    "Resize 10 nearest": one_node("Resize", 10, [np.array([1, 1, 1.5, 0.5], np.float32)], mode="nearest"),
    "Resize 11": one_node("Resize", 11, [np.zeros(0, np.float32), _SCALES], mode="cubic"),
    "RoiAlign 10": one_node("RoiAlign", 10, [_ROIS, _ints(0, 1)], output_height=2, output_width=2),
    "Scatter 9": one_node("Scatter", 9, [_LOOK_UP, np.ones((2, 2), np.float32)], shape=(2, 3), axis=1),
    "Slice 7": one_node("Slice", 7, axes=[2, 3], starts=[1, 0], ends=[3, -1]),
    "Slice 7 without axes": one_node("Slice", 7, starts=[0, 1], ends=[1, 3]),
    "Softmax 7 of the flattened": one_node("Softmax", 7, shape=(2, 3, 4), axis=1),
    "Softmax 11 of the last axis": one_node("Softmax", 11, shape=(2, 3, 4), axis=2),
    "Split 7": one_node("Split", 7, outputs=2, axis=3, split=[1, 3]),
    "Split 7 into equal parts": one_node("Split", 7, outputs=2, axis=3),
    "Squeeze 7": one_node("Squeeze", 7, shape=(2, 1, 3, 1), axes=[1]),
    "Squeeze 11 of all": one_node("Squeeze", 11, shape=(2, 1, 3, 1)),
    "TopK 7": one_node("TopK", 7, outputs=2, k=2, axis=1),
    "Unsqueeze 7": one_node("Unsqueeze", 7, axes=[0, 2]),
    "Upsample 7": one_node("Upsample", 7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]),
    "Upsample 7 linear": one_node("Upsample", 7, mode="linear", scales=[1.0, 1.0, 2.0, 2.0]),
    "Upsample 9": one_node("Upsample", 9, [np.array([1, 1, 2, 3], np.float32)], mode="nearest"),
    "Upsample 9 linear": one_node("Upsample", 9, [_SCALES], mode="linear"),
    "Selu 6": one_node("Selu", 6),
    "MaxPool 1": one_node("MaxPool", 1, kernel_shape=[2, 2]),
    "ArgMax 11": one_node("ArgMax", 11, kind=TensorProto.INT64, axis=1),
    **{f"Reduce{kind} 7": one_node(f"Reduce{kind}", 7, axes=[2, 3], keepdims=0)
       for kind in ("Sum", "Mean", "Max", "Min", "L2", "L1", "Prod", "SumSquare", "LogSumExp")},
    "ReduceSum 11 of all": one_node("ReduceSum", 11, keepdims=0),
    "ReduceMean 13": one_node("ReduceMean", 13, axes=[-1]),
    "LpPool 11": one_node("LpPool", 11, kernel_shape=[2, 2], p=2),
    "Split 13": one_node("Split", 13, [_ints(1, 3)], outputs=2, axis=3),
    "GridSample 16": one_node(
        "GridSample", 16, [np.linspace(-1, 1, 2 * 3 * 3 * 2, dtype=np.float32).reshape(2, 3, 3, 2)], mode="bicubic",
    ),
    "DFT 17": one_node("DFT", 17, shape=(1, 6, 2), axis=1),
    "GlobalMaxPool 22": one_node("GlobalMaxPool", 22),
    "RMSNormalization 23": one_node("RMSNormalization", 23, [np.array([1, 2, 3, 4], np.float32)]),
    "Swish 24": one_node("Swish", 24),
    **{f"Conv and pooling {opset}": one_node("MaxPool", opset, kernel_shape=[2, 2]) for opset in (22, 23, 24, 25)},
    "If around Squeeze 11": body_of([node("Squeeze", ["x"], ["b"], axes=[1])], 11),
    "If around ReduceSum 12": body_of([node("ReduceSum", ["x"], ["b"], axes=[2, 3])], 12),
    "If around Softmax 12": body_of([node("Softmax", ["x"], ["b"], axis=2)], 12),
    "If around Dropout 7": body_of([node("Dropout", ["x"], ["b"], ratio=0.5)], 7),
    "If around Resize 10": body_of([node("Resize", ["x", "s"], ["b"], mode="nearest")], 10, {"s": _SCALES}),
    "If of 25": body_of([node("Cast", ["x"], ["b"], to=FLOAT)], 25),
    "Scan 8": scan_8(),
}  # fmt: skip
