"""A model of images of any size, for batches of so many shapes that no two are the same."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engines.reference import Arrays
from engines.tensor import TensorSpec
from tests.gpu.golden import MOST_ROWS, Golden

__all__ = ["MOST_SHAPES", "images", "planes"]

_CHANNELS, _LARGEST = 2, 4.0
_TERMS = 9 * _CHANNELS


@functools.cache
def planes() -> Golden:
    """y = max(0, 3x3 convolution of x), both [n, 2, h, w]."""
    weights = np.random.default_rng(5).uniform(-1, 1, (_CHANNELS, _CHANNELS, 3, 3)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", _CHANNELS, "h", "w"]) for name in "xy")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "planes", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given, made = (TensorSpec(name, "FP32", (-1, _CHANNELS, -1, -1), 0) for name in "xy")
    # two sums of n products are each n roundings of the sum of their sizes from the true one, or less (Higham, Accuracy
    # and Stability of Numerical Algorithms, section 3.1)
    within = 2 * _TERMS * 2.0**-24 * _LARGEST * float(np.abs(weights).sum(axis=(1, 2, 3)).max())
    return Golden("planes, fp32", model, model, (given,), (made,), {"y": within}, has_binary_layers=False)


_LOW, _HIGH = (planes().profiles[0]["x"][at][2] for at in (0, 2))
_SIDES = range(_LOW, _HIGH + 1)
MOST_SHAPES = MOST_ROWS * len(_SIDES) ** 2


def images() -> Iterator[Arrays]:
    """As many as there are shapes, each once."""
    rng = np.random.default_rng(3)
    whole = rng.uniform(-_LARGEST, _LARGEST, (MOST_ROWS, _CHANNELS, _HIGH, _HIGH)).astype(np.float32)
    for width in _SIDES:
        for height in _SIDES:
            for rows in range(1, MOST_ROWS + 1):
                yield {"x": np.ascontiguousarray(whole[:rows, :, :height, :width])}
