"""Guards on numbers that say how many, how long or how far, and that OpenVINO 2026.4 takes as they come.

A NonMaxSuppression of fewer than no boxes answers those of an earlier run, and the diagonal of a Trilu turns over at 32
bits: ONNX means none and all, so the number is brought to where it means that. Of a TopK or a ReverseSequence it means
nothing outside of what there is. The engine raises there, which costs more than to count it.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from engines.passes.guard_ops import Checks, Nodes

__all__ = ["COUNTED", "FARTHEST", "KEPT", "guard_count", "keep_in_reach"]

KEPT = {"NonMaxSuppression": 2, "Trilu": 1}
COUNTED = {"ReverseSequence": 1, "TopK": 1}
"""Position of the number, by operator."""
_MOST = "asks for less than one element, or for more than there are"
_LENGTHS = "has a length below 0 or beyond the steps there are"
FARTHEST = 2**30
"""Beyond every diagonal that there can be."""


def keep_in_reach(checks: Checks, node: NodeProto) -> list[NodeProto]:
    """Nodes to run before it, which give it another number of the same meaning."""
    b, position = Nodes(checks), KEPT[node.op_type]
    given = node.input[position]
    number, least = b.number(given), 0
    if node.op_type == "Trilu":
        near = b.op("Less", number, b.constant(FARTHEST))
        given, least = b.op("Where", near, given, b.constant(FARTHEST, np.int64)), -FARTHEST
    below = b.op("Less", number, b.constant(least))
    node.input[position] = b.op("Where", below, b.constant(least, np.int64), given)
    return b.nodes


def guard_count(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], str, str]:
    """Nodes to run before `node`, whose number they replace; the name of the count, and what it counts."""
    b, position = Nodes(checks), COUNTED[node.op_type]
    given = {attribute.name: attribute.i for attribute in node.attribute}
    is_top = node.op_type == "TopK"
    sizes = b.sizes(node.input[0], [given.get("axis", -1) if is_top else given.get("time_axis", 0)])
    number = b.number(node.input[position])
    least = 1 if is_top else 0
    bad = b.op("Or", b.op("Less", number, b.constant(least)), b.op("Less", sizes, number))
    count = b.count(bad)
    node.input[position] = b.op("Where", bad, b.constant(least, np.int64), node.input[position])
    return b.nodes, count, _MOST if is_top else _LENGTHS
