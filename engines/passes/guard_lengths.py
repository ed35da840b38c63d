"""Guards on the lengths of recurrent layers: OpenVINO 2026.4 takes any where it has no use for them.

ONNX Runtime refuses a length below 0 or beyond the T steps that there are; such a one is replaced by T, so that nothing
foreign is read. Where the engine ignores lengths that `engines.passes.sequence_lens` keeps, only those of T are right.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, numpy_helper

from engines.passes.guard_ops import Checks, Nodes
from engines.passes.sequence_lens import LENGTHS

__all__ = ["are_full", "guard_lengths", "time_axis"]


def time_axis(node: NodeProto) -> int:
    """Which axis of its data are the steps: 0, or 1 in layout 1, where axis 0 are the sequences."""
    return 1 if any(a.name == "layout" and a.i for a in node.attribute) else 0


def are_full(stored: TensorProto | None, steps: int | None) -> bool:
    """Whether every sequence is known to have all steps."""
    return stored is not None and steps is not None and bool((numpy_helper.to_array(stored) == steps).all())


def guard_lengths(checks: Checks, node: NodeProto, *, full: bool) -> tuple[list[NodeProto], str]:
    """Nodes to run before `node`, whose lengths they replace, and the name of the count.

    Counts those that are not in 0 to T (`full`: are not T); all of them where T is 0, or their number is not N.
    """
    b = Nodes(checks)
    time = time_axis(node)
    steps, sequences = b.sizes(node.input[0], [time]), b.sizes(node.input[0], [1 - time])
    lengths = node.input[LENGTHS]
    number, count = b.number(lengths), b.sizes(lengths, [0])
    outside = b.op("Or", b.op("Less", number, steps if full else b.constant([0])), b.op("Less", steps, number))
    unequal = b.op("Or", b.op("Less", count, sequences), b.op("Less", sequences, count))
    none = b.op("Less", steps, b.constant([1]))
    node.input[LENGTHS] = b.op("Where", outside, b.op("Cast", steps, to=TensorProto.INT32), lengths)
    return b.nodes, b.count(b.op("Or", outside, b.op("Or", unequal, none)))
