"""How far two runs of the same graph may differ through rounding alone."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

__all__ = ["rounding_bound"]

_UNIT_ROUNDOFF = 2.0**-24  # float32, round to nearest
_HALF_ROUNDOFF = 2.0**-9  # bfloat16 keeps 8 bits, float16 11: the coarser one bounds both
_SAFETY = 16.0
_RECURRENT_STEPS = 64


def rounding_bound(model: onnx.ModelProto) -> float:
    """Relative error allowed between two evaluations that sum in different orders.

    A dot product of length k evaluated in any order errs by about sqrt(k) u |x||y| with high probability (Higham and
    Mary 2019, "A new approach to probabilistic rounding error analysis"); errors of successive layers add up. So the
    bound is safety * u * sum over weighted nodes of sqrt(k), the safety factor standing for the ratio between the
    largest intermediate and the largest answer. It is only the float half of a proof: a mixing of rows weaker than
    this shows beside a row of large values or of NaN.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = sum(math.sqrt(_terms(node, shapes)) for node in model.graph.node)
    return _SAFETY * max(total, 16.0) * _UNIT_ROUNDOFF if not _has_half(model.graph) else 16.0 * _HALF_ROUNDOFF


def _has_half(graph: onnx.GraphProto) -> bool:
    """Half-precision tensors are rounded once a layer in one runtime and kept in float32 in another."""
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    values = (value.type.tensor_type.elem_type for value in [*graph.input, *graph.output])
    return any(kind in halves for kind in [*values, *(tensor.data_type for tensor in graph.initializer)])


def _terms(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Length of the sums that a node computes, 1 for elementwise ones."""
    weights = [shapes[name] for name in node.input if name in shapes]
    largest = max(weights, key=math.prod, default=())
    if node.op_type in ("Conv", "ConvTranspose") and len(largest) > 2:
        return math.prod(largest[1:])
    if node.op_type in ("Gemm", "MatMul"):
        return max(largest) if largest else 1024
    if node.op_type in ("LSTM", "GRU", "RNN") and largest:
        return largest[-1] * _RECURRENT_STEPS
    return 1
