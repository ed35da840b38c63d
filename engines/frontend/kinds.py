"""Element types in a graph, and which outputs no floating-point number has anything to do with."""

from __future__ import annotations

import contextlib

import onnx
from onnx import TensorProto

from engines.graphs import without_weights

__all__ = ["exact_outputs"]

_WHOLE = frozenset({
    TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8,
    TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip
_FORGETS = frozenset({"Shape", "Size"})
"""Operators whose results have nothing of their inputs' values."""


def exact_outputs(model: onnx.ModelProto) -> frozenset[str]:
    """Whole-number and boolean outputs that are computed from such values alone: there is nothing to round in them."""
    whole = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in _WHOLE]
    if not whole:
        return frozenset()
    kinds = _kinds(model)
    rounded = {name for name, kind in kinds.items() if kind not in _WHOLE}
    for node in model.graph.node:
        bodies = any(attribute.HasField("g") for attribute in node.attribute)  # these read more than their inputs
        reads = [name for name in node.input if name] if node.op_type not in _FORGETS else []
        if bodies or any(name in rounded or name not in kinds for name in reads):
            rounded.update(node.output)
    return frozenset(name for name in whole if name not in rounded)


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by name; what cannot be inferred is absent."""
    bare, weights = without_weights(model)
    with contextlib.suppress(Exception):  # then more outputs count as rounded
        bare = onnx.shape_inference.infer_shapes(bare)
    values = [*bare.graph.value_info, *bare.graph.input, *bare.graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in [*bare.graph.initializer, *weights.values()]}
