"""Store every constant of the top graph in one form: an initializer that is no input.

Algebra   Constant(value) = value
Pattern   a Constant node of the top graph holding numbers; an initializer that is listed as an input too (IR version 3)
Check     its value is no output of the graph (an output has to be made by a node), and neither sparse nor text
Rewrite   the value becomes an initializer of the same name; inputs that are stored are dropped: they are weights, and
          are never sent with a request
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from engines.graphs import copy_of, drop_stored_inputs

__all__ = ["store_constants"]

_FIRST_TO_STORE_ALONE = 4
"""Until IR version 3 every initializer had to be an input too."""
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def store_constants(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with its constants stored. It is the same object where they are already."""
    given = {value.name for value in model.graph.output}
    found = [None if given.intersection(node.output) else _stored(node) for node in model.graph.node]
    stored = {tensor.name for tensor in model.graph.initializer}
    if all(tensor is None for tensor in found) and not any(value.name in stored for value in model.graph.input):
        return model, ""
    copy = copy_of(model)
    copy.ir_version = max(copy.ir_version, _FIRST_TO_STORE_ALONE)
    drop_stored_inputs(copy.graph)
    del copy.graph.node[:]
    pairs = zip(model.graph.node, found, strict=True)
    copy.graph.node.extend(node for node, tensor in pairs if tensor is None)
    copy.graph.initializer.extend(tensor for tensor in found if tensor is not None)
    return copy, ""


def _stored(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.name == "value" and attribute.t.data_type != TensorProto.STRING:
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = node.output[0]
        return tensor
    if attribute.name in _NUMBERS:
        numbers = attribute.f if attribute.name == "value_float" else attribute.i
        if attribute.name.endswith("s"):
            numbers = attribute.floats if attribute.name == "value_floats" else attribute.ints
        return numpy_helper.from_array(np.array(numbers, _NUMBERS[attribute.name]), node.output[0])
    return None
