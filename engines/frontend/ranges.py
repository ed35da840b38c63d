"""What a graph demands of its inputs' values: indices within their tables, sizes that fit.

An index outside its table is an error in ONNX, but an engine may answer zeros instead (OpenVINO 2026.4 does). So the
range is read off the graph once, and requests are checked against it.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

__all__ = ["index_ranges", "takes_sizes_from_values", "unchecked_indices"]

_SAME_VALUES = frozenset(
    {"Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators whose first output holds nothing but values of their first input."""
_SIZE_INPUTS = {
    "ConstantOfShape": (0,), "Expand": (1,), "If": (0,), "Loop": (0, 1), "OneHot": (1,), "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2, 3, 4), "Tile": (1,), "TopK": (1,),
}  # fmt: skip
"""Positions of the inputs that say how large something is, by operator."""
_UNCHECKED = {"GatherElements": 1, "GatherND": 1, "ScatterElements": 1, "ScatterND": 1, "Scatter": 1}
"""Operators for which OpenVINO 2026.4 reads or writes memory at any index it is given; position of the indices."""
_VALID_INDICES = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size", "TopK"})
_KEEPS_VALID = frozenset({*_SAME_VALUES, "Concat", "Expand", "Tile"})
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def index_ranges(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Smallest and largest value allowed, by input name; inputs that index no stored table are left out.

    A table of n rows takes -n to n - 1 (ONNX Gather: negative indices count from the end). Where several tables are
    indexed by the same input, the narrowest range holds.
    """
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tables[node.output[0]] = tuple(node.attribute[0].t.dims)
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


def takes_sizes_from_values(model: onnx.ModelProto) -> bool:
    """Whether some size is computed from the inputs' values, so that a value can make a run fail.

    Constants and what is computed from shapes alone do not count.
    """
    fixed = {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        positions = _SIZE_INPUTS.get(node.op_type, ())
        if any(position < len(node.input) and node.input[position] not in fixed for position in positions):
            return True
        if node.op_type in ("Shape", "Size") or all(name in fixed for name in node.input):
            fixed.update(node.output)
    return False


def unchecked_indices(model: onnx.ModelProto) -> str | None:
    """The first node that would look up memory at an index computed from the inputs' values, or None.

    Constants, and what operators yield that can only name existing elements (ArgMax, TopK, NonZero, shapes), are
    safe, as is whatever merely moves such values about.
    """
    safe = {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        position = _UNCHECKED.get(node.op_type)
        if position is not None and node.input[position] not in safe:
            return f"{node.op_type} node {node.name or node.output[0]!r}"
        moved = node.input[:1] if node.op_type in _SAME_VALUES else node.input
        fixed = all(name in safe for name in node.input)
        if node.op_type in _VALID_INDICES or fixed or (node.op_type in _KEEPS_VALID and all(n in safe for n in moved)):
            safe.update(node.output)
    return None
