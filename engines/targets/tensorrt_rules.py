"""What TensorRT takes, checked on the graph before its parser sees it: that only warns, or means something else."""

from __future__ import annotations

import math

import onnx

from engines.errors import ModelRefused
from engines.passes.signed import unsigned_pairs

__all__ = ["refuse_for_tensorrt"]

_MOST_NAMED = 5


def refuse_for_tensorrt(model: onnx.ModelProto) -> None:
    """Raise ModelRefused for unsigned 8-bit pairs, which the parser takes for signed ones with a warning alone, for
    zero points other than 0, and for activations with a scale a channel, which it refuses without a name.
    """
    per_axis = _per_axis_activations(model)
    if per_axis:
        raise ModelRefused(f"TensorRT takes one scale for all of an activation; these have more: {_named(per_axis)}")
    pairs = unsigned_pairs(model)
    if pairs:
        raise ModelRefused(
            f"TensorRT takes signed 8-bit pairs with a zero point of 0 alone; these are others: {_named(pairs)}"
        )


def _per_axis_activations(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that round what is computed with a scale for each channel."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in stored]
    return [node.name for node in quantizing if node.input[1] in stored and math.prod(stored[node.input[1]].dims) > 1]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
