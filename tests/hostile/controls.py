"""Models whose requests decide by shapes and values whether the engine can run at all."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.onnx_models import build

__all__ = ["controls", "pictures"]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
make = helper.make_node


def pictures() -> onnx.ModelProto:
    """A kernel of 3 by 3, and weights for the first 2 by 2 places of what it gives, which are not always there."""
    nodes = [
        make("Conv", ["X", "K"], ["c"], kernel_shape=[3, 3]), make("Slice", ["c", "from", "to", "axes"], ["s"]),
        make("Flatten", ["s"], ["f"]), make("MatMul", ["f", "W"], ["Y"]),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {"K": rng.standard_normal((2, 1, 3, 3), dtype=np.float32), "W": np.ones((8, 3), np.float32)}
    numbers = {name: np.array(value) for name, value in {"from": [0, 0], "to": [2, 2], "axes": [2, 3]}.items()}
    return build(nodes, {"X": (FLOAT, ["N", 1, "H", "W"])}, {"Y": (FLOAT, ["N", 3])}, {**weights, **numbers})


def controls() -> onnx.ModelProto:
    """One output for each operator that is told by a value how long, how many, how far or along which axis."""
    nodes = [
        make("ReverseSequence", ["X", "l"], ["Y"], batch_axis=0, time_axis=1),
        make("TopK", ["X", "k"], ["R", "i"], axis=1), make("Squeeze", ["k", "none"], ["a"]),
        make("CumSum", ["X", "a"], ["Z"]), make("ReduceSum", ["X", "k"], ["S"], keepdims=1),
        make("Trilu", ["X", "a"], ["T"]), make("NonMaxSuppression", ["boxes", "scores", "k", "half"], ["B"]),
        make("Add", ["k", "one"], ["next"]), make("Mod", ["l", "next"], ["M"]),
    ]  # fmt: skip
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 1.05], [5, 5, 6, 6]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7]]], np.float32)
    constants = {
        "none": np.array([0]),
        "one": np.array(1),
        "boxes": boxes,
        "scores": scores,
        "half": np.array([0.5], np.float32),
    }
    outputs = {name: (FLOAT, ["A", "B"]) for name in "YRZST"}
    return build(nodes, {"X": (FLOAT, ["N", 4]), "l": (INT64, ["N"]), "k": (INT64, [1])},
                 {**outputs, "B": (INT64, ["C", 3]), "M": (INT64, ["N"])},
                 {**constants, "boxes": boxes, "scores": scores})  # fmt: skip
