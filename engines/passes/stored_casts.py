"""Store the result of Cast where its input is a constant: NNCF looks for the type of each Cast's input among the
graph's values, and ends with an error on a stored one.

Algebra   Cast(c) = c', for a stored c
Pattern   Cast of an initializer of numbers
Check     the result is numbers too, and no output of the graph
Rewrite   c' is stored under the name of the Cast's output; the Cast goes, and c where nobody else reads it
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.graphs import copy_of, read_anywhere

__all__ = ["store_casts"]

_NUMBERS = frozenset({
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16,
    TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip


def store_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without casts of constants; the same object where it has none."""
    if not any(node.op_type == "Cast" for node in model.graph.node):
        return model
    copy = copy_of(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    outputs = {value.name for value in copy.graph.output}
    done = []
    for node in copy.graph.node:  # in the order of the graph, so that a Cast of a Cast is stored too
        if node.op_type != "Cast" or node.input[0] not in stored or node.output[0] in outputs:
            continue
        to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        if {to, stored[node.input[0]].data_type} <= _NUMBERS:
            array = _cast(numpy_helper.to_array(stored[node.input[0]]), to)
            stored[node.output[0]] = numpy_helper.from_array(array, node.output[0])
            copy.graph.initializer.append(stored[node.output[0]])
            done.append(node)
    for node in done:
        copy.graph.node.remove(node)
    read = read_anywhere(copy.graph)
    for name in {node.input[0] for node in done} - read:
        copy.graph.initializer.remove(stored[name])
    return copy if done else model


def _cast(array: np.ndarray, to: int) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # what ONNX leaves undefined too
        return np.asarray(array.astype(helper.tensor_dtype_to_np_dtype(to)))
