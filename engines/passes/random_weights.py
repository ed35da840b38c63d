"""Twins of a graph with other weights, for proofs that a model's own weights would leave blind.

A model whose weights are constant answers every input alike, so rows could be swapped without notice; and one whose
answers are decided by rounding tells nothing by being compared. Which rows an output row depends on is a matter of the
graph, not of the weights' values: the twin with random weights shows it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["with_moved_weights", "with_random_weights"]

_FLOATS: dict[int, type[np.floating]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
_Draw = Callable[[np.ndarray], np.ndarray]


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which float initializers and constant ConstantOfShape nodes hold random values.

    Matrices and filters get N(0, 2 / fan_in) (He et al. 2015), which keeps activations in range through ReLU layers;
    vectors get U(0.5, 1.5), which suits biases, scales and variances alike.
    What a Resize reads is no weight: it stays.
    """
    rng = np.random.default_rng(seed)

    def draw(weights: np.ndarray) -> np.ndarray:
        if weights.ndim < 2:
            return rng.uniform(0.5, 1.5, weights.shape)
        fan_in = max(1, int(np.prod(weights.shape[1:])))
        return rng.standard_normal(weights.shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))

    return _with_weights(model, draw)


def with_moved_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy whose float weights are moved by up to one unit in the last place, each on its own.

    Where this changes the answers, they are decided by rounding, and no two correct runtimes need agree on them.
    """
    rng = np.random.default_rng(seed)

    def draw(weights: np.ndarray) -> np.ndarray:
        step = np.float64(np.finfo(weights.dtype).eps)
        return weights * (1 + step * rng.uniform(-1, 1, weights.shape))

    return _with_weights(model, draw)


def _with_weights(model: onnx.ModelProto, draw: _Draw) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 4)  # until 3, every initializer had to be an input too
    graph = copy.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    sizes = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.name in sizes:
            continue
        if tensor.data_type in _FLOATS and np.prod(tensor.dims, dtype=np.int64) > 1:
            tensor.CopyFrom(_drawn(draw, numpy_helper.to_array(tensor), tensor.name))
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        kind = value.data_type if value is not None else TensorProto.FLOAT
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes and kind in _FLOATS:
            fill = numpy_helper.to_array(value).reshape(()) if value is not None else np.float32(0)
            weights = np.full(shapes[node.input[0]], fill, _FLOATS[kind])
            graph.initializer.append(_drawn(draw, weights, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _drawn(draw: _Draw, weights: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(draw(weights)).astype(weights.dtype), name)
