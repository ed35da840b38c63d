"""Sign the activations that NNCF leaves unsigned: TensorRT takes INT8 alone, and a zero point of 0 alone.

Algebra   s q with q in [0, 255]  ~  (255/127 s) q' with q' in [-128, 127]: the same largest value, half the steps
Pattern   QuantizeLinear to uint8 with a stored scale and zero point 0, and the DequantizeLinear nodes that read it
Check     the zero point is 0, and nobody but these reads scale and zero point as something else
Rewrite   new constants for scale and zero point, in both
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engines.graphs import copy_of

__all__ = ["sign_activations", "unsigned_pairs"]

_STRETCH = np.float32(255 / 127)
_SIGNED = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


def unsigned_pairs(model: onnx.ModelProto) -> list[str]:
    """Names of the QuantizeLinear and DequantizeLinear nodes whose zero point is no signed zero."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if _is_pair(node) and not _is_signed_zero(node, stored)]


def sign_activations(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model with signed activations. The note names pairs that cannot be signed: their zero point is not 0."""
    copy = copy_of(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    left: list[str] = []
    retyped: set[str] = set()
    done = False
    for node in copy.graph.node:
        if not _is_pair(node) or _is_signed_zero(node, stored):
            continue
        zero = stored.get(node.input[2]) if len(node.input) > 2 else None
        scale = stored.get(node.input[1])
        if zero is None or scale is None or zero.data_type != TensorProto.UINT8 or np.any(numpy_helper.to_array(zero)):
            left.append(node.name)
            continue
        node.input[1], node.input[2] = f"{scale.name}_signed", f"{zero.name}_signed"
        if node.input[1] not in stored:
            stretched = np.asarray(numpy_helper.to_array(scale) * _STRETCH, np.float32)
            zeros = np.zeros(numpy_helper.to_array(zero).shape, np.int8)
            for name, array in ((node.input[1], stretched), (node.input[2], zeros)):
                stored[name] = numpy_helper.from_array(array, name)
                copy.graph.initializer.append(stored[name])
        done = True
        retyped.update(node.output if node.op_type == "QuantizeLinear" else [])
    kept = [value for value in copy.graph.value_info if value.name not in retyped]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(kept)
    note = f"left unsigned, their zero point is not 0: {', '.join(left)}" if left else ""
    return (copy if done else model), note


def _is_pair(node: onnx.NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _is_signed_zero(node: onnx.NodeProto, stored: dict[str, TensorProto]) -> bool:
    zero = stored.get(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.data_type in _SIGNED and not np.any(numpy_helper.to_array(zero))
