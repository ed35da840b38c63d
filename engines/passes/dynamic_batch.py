"""Give a graph a variable batch axis. Proves nothing: the batch proof judges the result.

A graph exported for one row pins the batch in three places, and each has one rewrite (a graph whose batch is variable
already means what its shapes say: a Reshape to [1, -1] there may well gather all rows into one, and stays):
  input dims        the axis becomes symbolic, declared shapes of everything behind it are dropped
  Reshape(x, [.. 1 ..])    a 1 -> 0 ("copy this dimension of x") where x has 1 there too; else the leading 1 -> -1.
                           Only behind an input: a constant has no batch
  LSTM/GRU/RNN with a constant all-zero initial state of batch 1 -> no initial state, which means zeros
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from engines.graphs import copy_of, drop_stored_inputs

__all__ = ["BATCH", "with_batch_axes"]

BATCH = "batch"
_SMALL = 65536
_RECURRENT_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


def with_batch_axes(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model in which dimension `axes[name]` of each named input is variable."""
    dims = _known_dims(model)
    copy = copy_of(model)
    graph = copy.graph
    drop_stored_inputs(graph)
    del graph.value_info[:]
    was_fixed = False
    for value in graph.input:
        if value.name in axes:
            dim = value.type.tensor_type.shape.dim[axes[value.name]]
            was_fixed |= dim.dim_value == 1
            dim.Clear()
            dim.dim_param = BATCH
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    constants = _constants(graph)
    behind = {value.name for value in graph.input}
    for node in graph.node:
        if not behind.intersection(node.input) and not _has_subgraph(node):
            continue
        behind.update(node.output)
        if node.op_type == "Reshape" and was_fixed:
            _free_reshape(graph, node, constants, dims.get(node.input[0]))
        elif node.op_type in _RECURRENT_STATES:
            _drop_zero_states(node, constants)
    return copy


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _known_dims(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of every value whose shape is known in the graph as it was given; -1 for a variable one."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        graph = model.graph
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info]
        if value.type.tensor_type.HasField("shape")
    }


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Small tensors that the graph stores or makes by name (shapes and states; weights are not needed here)."""
    small = {t.name: numpy_helper.to_array(t) for t in graph.initializer if np.prod(t.dims, dtype=np.int64) <= _SMALL}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            attribute = node.attribute[0]
            if attribute.HasField("t"):
                small[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif attribute.name == "value_ints":
                small[node.output[0]] = np.array(attribute.ints, np.int64)
        elif node.op_type == "ConstantOfShape" and node.input[0] in small:
            shape = small[node.input[0]]
            fill = next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), np.float32(0))
            if np.prod(shape, dtype=np.int64) <= _SMALL:
                small[node.output[0]] = np.full(shape, np.reshape(fill, ()))
    return small


def _free_reshape(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, np.ndarray], dims: list[int] | None
) -> None:
    target = constants.get(node.input[1])
    keeps_zero = any(a.name == "allowzero" and a.i for a in node.attribute)
    if target is None or target.ndim != 1 or not target.size or keeps_zero:
        return
    given = [1] if dims is None else dims
    freed = target.copy()
    for i, size in enumerate(target):
        if size == 1 and i < len(given) and given[i] in (1, -1):
            freed[i] = 0
    if target[0] == 1 and freed[0] == 1 and -1 not in target:
        freed[0] = -1
    if np.array_equal(freed, target):
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
