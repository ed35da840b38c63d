"""Let a binary convolution add what is added to its sums: they are still in the nearest cache, and nothing is moved.

Algebra   Add(BinaryConv2d(...), r) is the convolution that adds r to each float that it has finished, rounded once more
Check     nobody else reads the convolution's floats; r is FP32 and of their shape, which is known but for the rows
"""

from __future__ import annotations

import openvino as ov

from engines.targets.openvino_bodies import replace
from engines.targets.openvino_fused import ADDING, fused

__all__ = ["add_in_layers"]


def add_in_layers(graph: ov.Model) -> int:
    """Returns how many sums there were. The layer keeps its name."""
    count = 0
    for node in graph.get_ordered_ops():
        layer, other = _layer_and_other(node) if node.get_type_name() == "Add" else (None, None)
        if layer is not None:
            adding = fused(ADDING, layer, [*layer.input_values(), other])
            replace(node.output(0), adding.output(0))
            count += 1
    return count


def _layer_and_other(node: ov.Node) -> tuple[ov.Node, ov.Output] | tuple[None, None]:
    values = node.input_values()
    shape = values[0].get_partial_shape()
    if shape != values[1].get_partial_shape() or any(size.is_dynamic for size in list(shape)[1:]):
        return None, None
    for value, other in (values, values[::-1]):
        layer = value.get_node()
        if layer.get_type_name() == "BinaryConv2d" and len(value.get_target_inputs()) == 1:
            return layer, other
    return None, None
