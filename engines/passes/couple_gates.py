"""Give coupled gates of an LSTM (input_forget) weights of their own: OpenVINO and TensorRT pass over the attribute.

Algebra   coupled, f = 1 - i, with i = sigmoid(z), z = W x + R h + Wb + Rb + P c. Since 1 - sigmoid(z) = sigmoid(-z),
          f is an ordinary forget gate whose weights are those of the input gate, negated. Cell clip is symmetrical:
          sigmoid(clip(-z)) = sigmoid(-clip(z))
Pattern   LSTM with input_forget = 1
Check     its gates are sigmoids, and its weights are stored; else it is left, and named
Rewrite   of W, R, B and P, the rows of the forget gate become the negated rows of the input gate. Rows are in the order
          i, o, f, c of the operator's own text, twice in B, without c in P
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from engines.graphs import copy_of
from engines.passes.names import FreeNames

__all__ = ["couple_gates"]

_GATES, _INPUT, _FORGET = 4, 0, 2
_W, _R, _B, _P = 1, 2, 3, 7


def couple_gates(model: ModelProto) -> tuple[ModelProto, str]:
    """The model without input_forget; the note names the layers that keep it. The same object where none had it.

    `model` has its constants stored.
    """
    if not any(_is_coupled(node) for node in model.graph.node):
        return model, ""
    copy = copy_of(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    names, left = FreeNames(copy.graph), []
    for node in copy.graph.node:
        if not _is_coupled(node):
            continue
        reason = _reason_to_leave(node, stored)
        if reason:
            left.append(f"{node.name or node.output[0]} is left: {reason}")
        else:
            _give_weights(copy.graph, node, stored, names)
    return copy, "; ".join(left)


def _is_coupled(node: NodeProto) -> bool:
    return node.op_type == "LSTM" and any(one.name == "input_forget" and one.i for one in node.attribute)


def _reason_to_leave(node: NodeProto, stored: dict[str, TensorProto]) -> str:
    functions = next((list(one.strings) for one in node.attribute if one.name == "activations"), [])
    if any(function.lower() != b"sigmoid" for function in functions[::3]):
        return "its gates are no sigmoids"
    if any(name and name not in stored for name in (_read(node, position) for position in (_W, _R, _B, _P))):
        return "its weights are computed"
    return ""


def _read(node: NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _give_weights(graph: GraphProto, node: NodeProto, stored: dict[str, TensorProto], names: FreeNames) -> None:
    for position, groups in ((_W, _GATES), (_R, _GATES), (_B, 2 * _GATES), (_P, _GATES - 1)):
        name = _read(node, position)
        if not name:
            continue
        weights = numpy_helper.to_array(stored[name])
        rows = weights.reshape(weights.shape[0], groups, -1).copy()
        for start in range(0, groups, _GATES):
            rows[:, start + _FORGET] = -rows[:, start + _INPUT]
        new = names(f"{name}.coupled")
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(rows.reshape(weights.shape)), new))
        node.input[position] = new
    kept = [one for one in node.attribute if one.name != "input_forget"]
    del node.attribute[:]
    node.attribute.extend(kept)
