"""Keep sums beside binary layers in the order of elements in which those read and write.

Binary operators know one order, channel after channel. OpenVINO 2026.4 computes a sum in the order of its first input,
place after place behind a pool or a convolution in floats, so that between two binary layers everything is moved there
and back. As a matrix of rows a sum has one order alone, and to see it as one moves nothing.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from engines.targets.openvino_bodies import replace

__all__ = ["keep_sums_in_rows"]

_AS_IT_IS, _ALL_OTHERS = 0, -1


def keep_sums_in_rows(graph: ov.Model) -> int:
    """Of every BinaryConv2d and something of its shape, all but the rows known; returns how many there are."""
    found = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Add" and _is_of_layer(node)]
    for node in found:
        _sum_in_rows(node)
    return len(found)


def _is_of_layer(node: ov.Node) -> bool:
    a, b = node.input_values()
    shape = a.get_partial_shape()
    return (
        "BinaryConv2d" in (a.get_node().get_type_name(), b.get_node().get_type_name())
        and shape == b.get_partial_shape()
        and all(size.is_static for size in list(shape)[1:])
    )


def _sum_in_rows(node: ov.Node) -> None:
    name, shape = node.get_friendly_name(), node.get_output_partial_shape(0)
    rows = ops.constant(np.array([_AS_IT_IS, _ALL_OTHERS]))
    total = ops.add(*(ops.reshape(value, rows, special_zero=True) for value in node.input_values()))
    total.set_friendly_name(name)
    places = ops.constant(np.array([_AS_IT_IS, *(size.get_length() for size in list(shape)[1:])]))
    back = ops.reshape(total, places, special_zero=True)
    back.set_friendly_name(f"{name}.places")
    replace(node.output(0), back.output(0))
