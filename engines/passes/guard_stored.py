"""Guards on stored whole numbers beyond 32 bits: OpenVINO 2026.4 cuts them without a word.

A sample shows that only where it takes one. So the uses of those that may be taken or not are counted: what a Where or
a look-up chooses, and what a branch of an If holds. What is taken in every run, every sample has seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from engines.passes.guard_integers import WIDE
from engines.passes.guard_ops import Checks, Nodes

__all__ = ["TAKES_WIDE", "StoredWide"]

TAKES_WIDE = "takes a stored integer beyond 32 bits"
_CHOICES = {"Gather": (0,), "GatherElements": (0,), "GatherND": (0,), "Where": (1, 2)}
"""Operators that take some of what they are given, and the positions of that."""
_MOVES = frozenset({
    "Cast", "Concat", "ConcatFromSequence", "ConstantOfShape", "Expand", "Flatten", "Identity", "Pad", "Reshape",
    "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that give what they are given."""
_NOT_DATA = {"Expand": 1, "Pad": 1, "Reshape": 1, "ScatterElements": 1, "ScatterND": 1, "Slice": 1, "Split": 1,
             "Squeeze": 1, "Tile": 1, "Unsqueeze": 1}  # fmt: skip
"""Of these, position of an input that is a size, an axis or an index."""
Stored = Callable[[str], TensorProto | None]


class StoredWide:
    """Finds them; `stored` of `uses` gives the tensor that is stored under a name."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._made: set[str] = set()
        """Names of what is computed from such numbers, wholly or in part."""

    def uses(self, node: NodeProto, stored: Stored, *, in_body: bool) -> tuple[list[NodeProto], list[str]]:
        """Nodes that count what the node takes of them, and the names of the counts."""
        b = Nodes(self._checks)
        if node.op_type in _CHOICES:
            return b.nodes, [
                b.op("ReduceSum", self._chosen(b, node, p, flags), keepdims=0)
                for p in _CHOICES[node.op_type]
                if p < len(node.input) and (flags := self._flags(node.input[p], stored)) is not None
            ]
        if node.op_type not in _MOVES or not self._moves(node, stored):
            return [], []
        self._made.update(node.output)
        return b.nodes, [b.constant(1)] if in_body else []

    def given(self, name: str, stored: Stored) -> tuple[list[NodeProto], list[str]]:
        """The same for a body that gives what is stored."""
        b = Nodes(self._checks)
        return b.nodes, [b.constant(1)] if _wide(stored(name)) is not None else []

    def _moves(self, node: NodeProto, stored: Stored) -> bool:
        if node.op_type == "ConstantOfShape":
            return any(_wide(attribute.t) is not None for attribute in node.attribute if attribute.name == "value")
        other = _NOT_DATA.get(node.op_type, -1)
        if node.op_type == "Cast" and not any(a.name == "to" and a.i in WIDE for a in node.attribute):
            return False
        return any(self._flags(name, stored) is not None for p, name in enumerate(node.input) if p != other)

    def _flags(self, name: str, stored: Stored) -> np.ndarray | None:
        """1 for each number beyond 32 bits; of what is computed from such, one for all. None where there are none."""
        return np.ones((), np.float32) if name in self._made else _wide(stored(name))

    def _chosen(self, b: Nodes, node: NodeProto, position: int, flags: np.ndarray) -> str:
        """What the node takes of the flags, in the place of what they speak of."""
        if node.op_type != "Where" and not flags.shape:
            return b.constant(flags)
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = "", b.checks.name()
        twin.input[position] = b.constant(flags)
        if node.op_type == "Where":
            twin.input[3 - position] = b.constant(0)
        b.nodes.append(twin)
        return str(twin.output[0])


def _wide(tensor: TensorProto | None) -> np.ndarray | None:
    if tensor is None or tensor.data_type not in WIDE:
        return None
    numbers = numpy_helper.to_array(tensor)
    limits = np.iinfo(np.int32)
    flags = (numbers > limits.max) | (numbers < limits.min)
    return flags.astype(np.float32) if flags.any() else None
