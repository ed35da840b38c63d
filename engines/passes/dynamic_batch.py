"""Give a graph a variable batch axis. Proves nothing: the batch proof judges the result.

A graph exported for one row pins the batch in three places, and each has one rewrite:
  input dims        the axis becomes symbolic, declared shapes of everything behind it are dropped
  Reshape(x, [1, ...])     leading 1 -> 0 ("copy dimension 0 of x") where x has one row in dimension 0, else -1
  LSTM/GRU/RNN with a constant all-zero initial state of batch 1 -> no initial state, which means zeros
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["BATCH", "with_batch_axes"]

BATCH = "batch"
_RECURRENT_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


def with_batch_axes(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model in which dimension `axes[name]` of each named input is variable."""
    ranks_and_rows = _leading_dims(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _drop_stored_inputs(graph)
    del graph.value_info[:]
    for value in graph.input:
        if value.name in axes:
            dim = value.type.tensor_type.shape.dim[axes[value.name]]
            dim.Clear()
            dim.dim_param = BATCH
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type == "Reshape":
            _free_reshape(graph, node, constants, ranks_and_rows)
        elif node.op_type in _RECURRENT_STATES:
            _drop_zero_states(node, constants)
    return copy


def _drop_stored_inputs(graph: onnx.GraphProto) -> None:
    """IR version 3 lists every initializer as an input too; such inputs are not part of the model's interface."""
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in stored]
    del graph.input[:]
    graph.input.extend(kept)


def _leading_dims(model: onnx.ModelProto) -> dict[str, int]:
    """Size of dimension 0 of every value whose shape is known in the graph as it was given."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        graph = model.graph
    known: dict[str, int] = {}
    for value in [*graph.input, *graph.value_info]:
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dims[0].HasField("dim_value"):
            known[value.name] = dims[0].dim_value
    return known


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initializers and Constant nodes of small tensors by name (shapes and states; weights are not needed here)."""
    small = {t.name: numpy_helper.to_array(t) for t in graph.initializer if np.prod(t.dims, dtype=np.int64) <= 65536}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            small[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return small


def _free_reshape(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, np.ndarray], rows: Mapping[str, int]
) -> None:
    target = constants.get(node.input[1])
    keeps_zero = any(a.name == "allowzero" and a.i for a in node.attribute)
    if target is None or target.ndim != 1 or not target.size or target[0] != 1 or keeps_zero:
        return
    freed = target.copy()
    if rows.get(node.input[0], 1) == 1:
        freed[0] = 0
    elif -1 not in target:
        freed[0] = -1
    else:
        return
    name = f"{node.input[1]}_{BATCH}_{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(freed, name))
    node.input[1] = name


def _drop_zero_states(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> None:
    for position in _RECURRENT_STATES[node.op_type]:
        if position < len(node.input) and node.input[position] in constants:
            state = constants[node.input[position]]
            if not state.any():
                node.input[position] = ""
