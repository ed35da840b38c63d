"""Guards on sizes that values ask for: a request of a few bytes must not make the engine allocate gigabytes.

Where a size is computed from the inputs' values, the number of elements (or turns of a loop) that it asks for is
computed first, in FP32. Over the limit, the run counts as failed and the size is replaced by a harmless one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper

from engines.passes.guard_ops import Checks, Nodes

__all__ = ["MAX_ELEMENTS", "MAX_TURNS", "SIZE_INPUT", "guard_size", "range_forwards"]

MAX_ELEMENTS = 2.0**28
"""Of one tensor: 1 GiB of FP32."""
MAX_TURNS = 2.0**20
SIZE_INPUT = {
    "ConstantOfShape": (0,), "Expand": (1,), "Loop": (0,), "OneHot": (1,), "Pad": (1,), "Range": (1, 0, 2),
    "Resize": (3, 2), "Split": (1,), "Tile": (1,), "Upsample": (1,),
}  # fmt: skip
"""Positions of the inputs that say how large an output becomes; the first that is given is the one replaced."""


def guard_size(checks: Checks, node: NodeProto, kind: int) -> tuple[list[NodeProto], str]:
    """Nodes to run before `node` (whose size input they replace), and the name of the count.

    `kind` is the element type of the size input.
    """
    position = next(p for p in SIZE_INPUT[node.op_type] if p < len(node.input) and node.input[p])
    build = Nodes(checks)
    if node.op_type == "Range":
        build.nodes += range_forwards(checks, node)
    elements = _ELEMENTS[node.op_type](build, node)
    limit = build.constant(MAX_TURNS if node.op_type == "Loop" else MAX_ELEMENTS)
    bad = build.op("Not", build.op("Less", elements, limit))  # NaN is bad too
    if node.op_type in _NEGATIVE:
        bad = build.op("Or", bad, _NEGATIVE[node.op_type](build, node))
    counting, count = checks.count(bad)
    harmless = node.input[0] if node.op_type == "Range" else _harmless(build, node.op_type, kind)
    node.input[position] = build.op("Where", bad, harmless, node.input[position])
    return [*build.nodes, *counting], count


def _harmless(build: Nodes, op: str, kind: int) -> str:
    """Zero for paddings and turns, one for sizes and repetitions."""
    return build.constant(0 if op in ("Pad", "Loop") else 1, helper.tensor_dtype_to_np_dtype(kind))


def _scaled(position: int) -> Callable[[Nodes, NodeProto], str]:
    """As many as the data has, times the product of an input."""
    return lambda b, node: b.op("Mul", b.size(node.input[0]), b.product(node.input[position]))


def _expanded(b: Nodes, node: NodeProto) -> str:
    """Of the broadcast shape: the shorter of the two gets ones in front, and of each pair the larger one counts."""
    has, asked = (b.number(name) for name in (b.op("Shape", node.input[0]), node.input[1]))
    lengths = [b.number(b.op("Shape", name)) for name in (has, asked)]
    ones = helper.make_tensor("one", TensorProto.FLOAT, [1], [1])
    padded = []
    for name, (own, other) in ((has, lengths), (asked, lengths[::-1])):
        missing = b.op("Max", b.op("Sub", other, own), b.constant([0]))  # of integers from opset 12 on only
        front = b.op("ConstantOfShape", b.op("Cast", missing, to=TensorProto.INT64), value=ones)
        padded.append(b.op("Concat", front, name, axis=0))
    return b.op("ReduceProd", b.op("Max", *padded), keepdims=0)


def _padded(b: Nodes, node: NodeProto) -> str:
    """Every dimension grown by its own two paddings; a bound where only some axes are padded and one is empty."""
    one = b.constant(1)
    pairs = b.op("Reshape", b.number(node.input[1]), b.constant([2, -1], np.int64))
    grown = b.op("Add", b.op("Gather", pairs, b.constant(0, np.int64)), b.op("Gather", pairs, b.constant(1, np.int64)))
    shape = b.op("Shape", node.input[0])
    if not (len(node.input) > 3 and node.input[3]):
        return b.op("ReduceProd", b.op("Add", b.number(shape), grown), keepdims=0)
    padded = b.op("Max", b.number(b.op("Gather", shape, node.input[3])), one)
    others = b.op("Div", b.op("ReduceProd", b.op("Max", b.number(shape), one), keepdims=0),
                  b.op("ReduceProd", padded, keepdims=0))  # fmt: skip
    return b.op("Mul", others, b.op("ReduceProd", b.op("Max", b.op("Add", padded, grown), one), keepdims=0))


def _below_nothing(b: Nodes, node: NodeProto) -> str:
    """OpenVINO 2026.4 takes negative repeats and pieces, and writes and reads where it should not."""
    return b.op("Less", b.op("ReduceMin", b.number(node.input[1]), keepdims=0), b.constant(0))


def _crops_too_much(b: Nodes, node: NodeProto) -> str:
    """Negative paddings cut off; OpenVINO 2026.4 also cuts off more than there is, and writes where it should not."""
    dims = b.op("Shape", node.input[0])
    if len(node.input) > 3 and node.input[3]:  # paddings of these axes only
        dims = b.op("Gather", dims, node.input[3])
    pairs = b.op("Reshape", b.number(node.input[1]), b.constant([2, -1], np.int64))
    begin, end = (b.op("Gather", pairs, b.constant(row, np.int64)) for row in (0, 1))
    size = b.number(dims)
    ends = [b.op("Add", size, begin), b.op("Add", size, end), b.op("Add", b.op("Add", size, begin), end)]
    least = b.op("ReduceMin", b.op("Concat", *ends, axis=0), keepdims=0)
    return b.op("Less", least, b.constant(0))


def _ranged(b: Nodes, node: NodeProto) -> str:
    start, limit, delta = (b.number(name) for name in node.input)
    return b.op("Div", b.op("Sub", limit, start), delta)


def range_forwards(checks: Checks, node: NodeProto) -> list[NodeProto]:
    """ONNX: a range that leads away from its limit is empty. OpenVINO 2026.4 gives as many elements as it lacks."""
    build = Nodes(checks)
    empty = build.op("Less", _ranged(build, node), build.constant(0))
    node.input[1] = build.op("Where", empty, node.input[0], node.input[1])
    return build.nodes


def _resized(b: Nodes, node: NodeProto) -> str:
    if len(node.input) > 3 and node.input[3]:
        return b.product(node.input[3])
    return _scaled(2)(b, node)


_ELEMENTS: dict[str, Callable[[Nodes, NodeProto], str]] = {
    "ConstantOfShape": lambda b, node: b.product(node.input[0]),
    "Expand": _expanded,
    "Loop": lambda b, node: b.number(node.input[0]),
    "OneHot": lambda b, node: b.op("Mul", b.size(node.input[0]), b.product(node.input[1])),
    "Pad": _padded,
    "Range": _ranged,
    "Resize": _resized,
    "Split": lambda b, node: b.op("ReduceMax", b.op("Abs", b.number(node.input[1])), keepdims=0),
    "Tile": _scaled(1),
    "Upsample": _scaled(1),
}
_NEGATIVE: dict[str, Callable[[Nodes, NodeProto], str]] = {
    "Pad": _crops_too_much, "Split": _below_nothing, "Tile": _below_nothing,
}  # fmt: skip
"""Whether a size is below what there is; for the other operators OpenVINO looks itself."""
