"""Store weights in the shape that they are read in: exporters leave Reshape and Transpose of constants in the graph,
and who looks for the weights of a product finds none.

Algebra   f(c) = c', for a stored c and an f that moves numbers only
Pattern   Reshape, Transpose, Flatten, Squeeze, Unsqueeze of a stored float tensor, other inputs stored too
Check     the result is no output of the graph
Rewrite   c' is stored under the name of the node's output; the node goes, and c where nobody else reads it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.graphs import copy_of, opset_of, read_anywhere

__all__ = ["store_shapes"]

_MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def store_shapes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model with such results stored; the same object where it has none."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    made: dict[str, TensorProto] = {}
    for node in model.graph.node:  # in the order of the graph, so that a Transpose of a Reshape is stored too
        known = stored | made
        if node.op_type not in _MOVES or node.domain not in ("", "ai.onnx") or node.output[0] in outputs:
            continue
        names = [name for name in node.input if name]
        if all(name in known for name in names) and known[names[0]].data_type == TensorProto.FLOAT:
            made[node.output[0]] = _moved(node, [known[name] for name in names], opset_of(model) or 21)
    if not made:
        return model, ""
    copy = copy_of(model)
    kept = [node for node in copy.graph.node if node.output[0] not in made]
    gone = [node for node in copy.graph.node if node.output[0] in made]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(made.values())
    unread = {name for node in gone for name in node.input} - read_anywhere(copy.graph)
    for tensor in [tensor for tensor in copy.graph.initializer if tensor.name in unread]:
        copy.graph.initializer.remove(tensor)
    return copy, ""


def _moved(node: onnx.NodeProto, read: Sequence[TensorProto], opset: int) -> TensorProto:
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in zip(node.input, read, strict=True)}
    found: Any = ReferenceEvaluator(node, opsets={"": opset}).run(None, arrays)
    return numpy_helper.from_array(np.ascontiguousarray(found[0]), node.output[0])
