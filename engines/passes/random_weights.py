"""A twin of a graph with seeded random weights, for proofs that degenerate weights would leave blind.

A model whose weights are constant answers every input alike, so rows could be swapped without notice. Which rows an
output row depends on is a matter of the graph, not of the weights' values: the twin shows it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["with_random_weights"]

_FLOATS: dict[int, type[np.floating]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A copy in which float initializers and constant ConstantOfShape nodes hold random values.

    Matrices and filters get N(0, 2 / fan_in) (He et al. 2015), which keeps activations in range through ReLU layers;
    vectors get U(0.5, 1.5), which suits biases, scales and variances alike.
    """
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tensor in graph.initializer:
        if tensor.data_type in _FLOATS and np.prod(tensor.dims, dtype=np.int64) > 1:
            tensor.CopyFrom(_random(rng, tuple(tensor.dims), tensor.data_type, tensor.name))
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        kind = value.data_type if value is not None else TensorProto.FLOAT
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes and kind in _FLOATS:
            graph.initializer.append(_random(rng, tuple(shapes[node.input[0]]), kind, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _random(rng: np.random.Generator, dims: tuple[int, ...], kind: int, name: str) -> TensorProto:
    if len(dims) >= 2:
        fan_in = max(1, int(np.prod(dims[1:])))
        values = rng.standard_normal(dims, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    else:
        values = rng.uniform(0.5, 1.5, dims).astype(np.float32)
    return numpy_helper.from_array(values.astype(_FLOATS[kind]), name)
