"""A guard on Resize: OpenVINO 2026.4 copies an axis that keeps its size, although its scale may not be 1.

The size becomes floor(L s), so this is an axis of two or more with 1 < s < 1 + 1 / L, where ONNX still samples in
steps of 1 / s. (With `align_corners` the steps are 1 then, and with sizes in place of scales the scale is 1.)
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.passes.guard_ops import Checks, Nodes

__all__ = ["guard_scales", "may_keep_a_size"]

_SCALES = 2
_HIGHEST = 1.5
"""Beyond it, only an axis of one keeps its size."""


def may_keep_a_size(node: NodeProto, stored: TensorProto | None) -> bool:
    """Whether the guard is needed; `stored` are its scales, where they are."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type != "Resize" or len(node.input) <= _SCALES or not node.input[_SCALES]:
        return False
    if given.get("coordinate_transformation_mode") == b"align_corners":
        return False
    if stored is None:
        return True
    scales = numpy_helper.to_array(stored)
    return bool(np.any((scales > 1) & (scales < _HIGHEST)))


def guard_scales(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], str]:
    """Nodes to run before it, and the name of the count: how many axes keep their size without a scale of 1."""
    b = Nodes(checks)
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
    shape = b.number(b.op("Shape", node.input[0]))
    sizes = b.op("Gather", shape, b.constant(axes, np.int64)) if axes else shape
    larger = b.op("Less", b.constant(1), node.input[_SCALES])
    grown = b.op("Sub", b.op("Mul", sizes, node.input[_SCALES]), sizes)
    keeps = b.op("And", larger, b.op("Less", grown, b.constant(1)))
    count = b.count(b.op("And", keeps, b.op("Less", b.constant(1), sizes)))
    return b.nodes, count
