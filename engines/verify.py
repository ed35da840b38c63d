"""How far two runs of the same graph may differ through rounding alone."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

__all__ = ["agreement_bound", "is_quantized", "rounding_bound"]

_UNIT_ROUNDOFF = 2.0**-24  # float32, round to nearest
_STEPS = {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}
"""One unit in the last place: two numbers that are nearly equal may be rounded to neighbours."""
_STEP_OF_8_BITS = 2.0**-7
"""Of the largest value: where sums in another order end on the other side of a rounding."""
_FEWEST_ROUNDINGS = 16
_SAFETY = 16.0
_SLACK = 16.0
"""Fused kernels get this many times the rounding of a reordered sum."""
_RECURRENT_STEPS = 64


def rounding_bound(model: onnx.ModelProto) -> float:
    """Relative error allowed between two evaluations that sum in different orders.

    A dot product of length k evaluated in any order errs by about sqrt(k) u |x||y| with high probability (Higham and
    Mary 2019, "A new approach to probabilistic rounding error analysis"); errors of successive layers add up. So the
    bound is safety * u * sum over weighted nodes of sqrt(k), the safety factor standing for the ratio between the
    largest intermediate and the largest answer. It is only the float half of a proof: a mixing of rows weaker than
    this shows beside a row of large values or of NaN. An output in half precision may end one step away, and behind a
    rounding to 8 bits a value may end some steps away.
    """
    return _reordered(model) + _last_step(model) + _quantized_step(model)


def agreement_bound(model: onnx.ModelProto) -> float:
    """The same between two runtimes, which do not only reorder sums but have other kernels. It can be much too wide
    for a deep network: see `engines.guarded.Guards`.
    """
    return _SLACK * _reordered(model) + _last_step(model) + _quantized_step(model)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether values are rounded to whole numbers on the way, so that a rounding error may become a step of these."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _quantized_step(model: onnx.ModelProto) -> float:
    """Each rounding may end a step away; where one does has nothing to do with the others, so their root counts."""
    count = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    return _STEP_OF_8_BITS * math.sqrt(max(count, _FEWEST_ROUNDINGS)) if count else 0.0


def _reordered(model: onnx.ModelProto) -> float:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = sum(math.sqrt(_terms(node, shapes)) for node in model.graph.node)
    return _SAFETY * max(total, 16.0) * _UNIT_ROUNDOFF


def _last_step(model: onnx.ModelProto) -> float:
    return max((_STEPS.get(value.type.tensor_type.elem_type, 0.0) for value in model.graph.output), default=0.0)


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
