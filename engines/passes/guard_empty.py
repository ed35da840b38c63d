"""Guards on what is not there: OpenVINO 2026.4 answers from an empty tensor with what an earlier run left in memory.

ONNX calls a look-up in an empty table an error, and the outputs of a loop that made no turn are empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from engines.passes.guard_ops import Checks, Nodes

__all__ = ["guard_axes", "guard_compress", "guard_regions", "guard_turns", "needed_axes"]

_AXIS = {"ArgMax": 0, "ArgMin": 0, "Gather": 0, "TopK": -1}
"""Operators that take from one axis, and which where it is not named."""
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_EXTREMES = frozenset({"ReduceMax", "ReduceMin"})


def needed_axes(node: NodeProto) -> list[int] | str | None:
    """The axes of its first input that must have elements: numbers, the name of a tensor of them, or [] for all of
    them; None where the operator needs none.
    """
    named = {a.name: a for a in node.attribute}
    if node.op_type in _AXIS:
        return [named["axis"].i if "axis" in named else _AXIS[node.op_type]]
    if node.op_type in _RECURRENT:
        return [1 if "layout" in named and named["layout"].i else 0]
    if node.op_type not in _EXTREMES:
        return None
    if len(node.input) > 1 and node.input[1]:
        return str(node.input[1])
    return list(named["axes"].ints) if "axes" in named else []


def guard_axes(checks: Checks, node: NodeProto, axes: Sequence[int] | str) -> tuple[list[NodeProto], str]:
    """Whether one of these axes has no elements."""
    b = Nodes(checks)
    if isinstance(axes, str):
        sizes = b.number(b.op("Gather", b.op("Shape", node.input[0]), axes))
    else:
        sizes = b.sizes(node.input[0], axes) if axes else b.size(node.input[0])
    least = b.op("ReduceMin", sizes, keepdims=0)
    count = b.count(b.op("Less", least, b.constant(1)))
    return b.nodes, count


def guard_compress(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], str]:
    """Whether the condition is longer than what it selects from: the engine looks up what is not there."""
    b = Nodes(checks)
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    data = node.input[0]
    there = b.size(data) if axis is None else b.op("ReduceMax", b.sizes(data, [axis]), keepdims=0)
    count = b.count(b.op("Less", there, b.size(node.input[1])))
    return b.nodes, count


def guard_regions(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], str]:
    """How many regions of MaxRoiPool name no image of the batch. They are replaced by empty ones of the first image."""
    b = Nodes(checks)
    images = b.sizes(node.input[0], [0])
    which = b.op("Gather", node.input[1], b.constant([0], np.int64), axis=1)
    fits = b.op("And", b.op("Less", which, images), b.op("Not", b.op("Less", which, b.constant(0))))
    bad = b.op("Not", fits)
    count = b.count(bad)
    node.input[1] = b.op("Where", bad, b.constant(0), node.input[1])
    return b.nodes, count


def guard_turns(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], str]:
    """Nodes to run before a Loop, and the name of a scalar: whether it makes at least one turn.

    A negative number of turns is none to ONNX; to the engine it is no limit.
    """
    b = Nodes(checks)
    ran = ""
    if node.input[0]:
        zero = b.constant(0, np.int64)
        turns = node.input[0]
        node.input[0] = b.op("Where", b.op("Less", b.number(turns), b.constant(0)), zero, turns)
        ran = b.op("Less", b.constant(0), b.number(turns))
    if len(node.input) > 1 and node.input[1]:
        ran = b.op("And", ran, node.input[1]) if ran else b.op("Identity", node.input[1])
    return b.nodes, ran
