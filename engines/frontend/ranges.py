"""Which values an integer input may hold: those that a table look-up right behind it can find.

An index outside its table is an error in ONNX, but an engine may answer zeros instead (OpenVINO 2026.4 does). So the
range is read off the graph once, and requests are checked against it.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

__all__ = ["index_ranges"]

_SAME_VALUES = frozenset(
    {"Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose first output holds nothing but values of their first input."""
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def index_ranges(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Smallest and largest value allowed, by input name; inputs that index no stored table are left out.

    A table of n rows takes -n to n - 1 (ONNX Gather: negative indices count from the end). Where several tables are
    indexed by the same input, the narrowest range holds.
    """
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    origin = {
        value.name: value.name
        for value in model.graph.input
        if value.name not in tables and value.type.tensor_type.elem_type in _INTEGERS
    }
    ranges: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:  # ONNX graphs are in topological order
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in origin:
            rows = tables[node.input[0]][_axis(node)]
            name = origin[node.input[1]]
            low, high = ranges.get(name, (-rows, rows - 1))
            ranges[name] = (max(low, -rows), min(high, rows - 1))
        elif node.op_type in _SAME_VALUES and node.input and node.input[0] in origin:
            for output in node.output:
                origin[output] = origin[node.input[0]]
    return ranges


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
