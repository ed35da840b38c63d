"""Guards on whole numbers: OpenVINO 2026.4 holds 32 bits of them, and computes many operators on them in FP32.

Measured on its CPU plugin: Add, Sub, Mul, Neg, Abs and CumSum wrap at 32 bits; comparisons, Div, Mod, Clip, Pow, Trilu,
products of matrices and every reduction read whole numbers as FP32, which holds all up to 2**24 and not beyond.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, TensorProto

from engines.passes.guard_ops import Checks, Nodes

__all__ = ["UNDEFINED", "WIDE", "WRAPS", "guard_cast", "guard_integers", "must_be_exact", "reads"]

WIDE = frozenset({TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64})
"""What the engine cuts to 32 bits, signed."""
INTEGERS = WIDE | {TensorProto.INT32}
_EXACT: dict[str, tuple[int, ...]] = {"Abs": (), "Add": (), "CumSum": (0,), "Mul": (), "Neg": (), "Sub": ()}
"""Operators that may give more than they are given, and the positions of their data; none = all inputs."""
_GROWING: dict[str, tuple[int, ...]] = {
    "Einsum": (), "Gemm": (), "MatMul": (), "Pow": (), "ReduceL1": (0,), "ReduceProd": (0,), "ReduceSum": (0,),
    "ReduceSumSquare": (0,),
}  # fmt: skip
_ROUNDED: dict[str, tuple[int, ...]] = {
    **_GROWING, "Clip": (0,), "Div": (), "Equal": (), "Greater": (), "GreaterOrEqual": (), "Less": (),
    "LessOrEqual": (), "Mod": (), "ReduceL2": (0,), "ReduceMax": (0,), "ReduceMean": (0,), "ReduceMin": (0,),
    "Trilu": (0,),
}  # fmt: skip
"""Operators that read whole numbers as FP32."""
_DIVISIONS = frozenset({"Div", "Mod"})
"""By zero, the engine gives a number, where ONNX Runtime raises."""
_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})
"""Of bytes: only their sums can become large."""
_KNOWN = {**_EXACT, **_ROUNDED}
UNDEFINED = "makes an integer of what is no number, or beyond 64 bits"
WRAPS = "gives an integer beyond 32 bits"
_FP32_EXACT = 2.0**24
_BEYOND_31_BITS = 2.0**31 + 256
"""FP32 has steps of 256 there."""
_HALF_TURN = 2.0**30
"""What wraps is off by 2**32, what FP32 rounds by far less than this."""


def must_be_exact(node: NodeProto, kinds: Sequence[int]) -> bool:
    """Whether it may answer wrongly, given the element types of its data (what `reads` names)."""
    if node.op_type in _PRODUCTS:
        return True
    allowed = WIDE if node.op_type in _EXACT else INTEGERS  # 32 bits that wrap are what ONNX Runtime answers, too
    return node.op_type in _KNOWN and all(kind in allowed for kind in kinds)


def reads(node: NodeProto) -> list[str]:
    """Names of the inputs that hold its data."""
    positions = _KNOWN.get(node.op_type) or range(len(node.input))
    return [node.input[p] for p in positions if p < len(node.input) and node.input[p]]


def guard_cast(checks: Checks, node: NodeProto) -> tuple[list[NodeProto], list[tuple[str, str]]]:
    """Where a float becomes a whole number: how many are too large for 32 bits, and how many are too large for 64 or
    no numbers, of which ONNX does not say what becomes of them. Two counts, and what each counts.
    """
    b = Nodes(checks)
    number = b.number(node.input[0])
    fits = b.op("Less", number, b.constant(2.0**31))
    below = b.op("Less", number, b.constant(-(2.0**31)))
    wide = b.op("Or", b.op("Not", fits), below)
    defined = b.op("Less", b.op("Abs", number), b.constant(2.0**63))
    wrong = b.count(b.op("And", wide, defined))
    undefined = b.count(b.op("Not", defined))
    return b.nodes, [(wrong, "makes an integer of a number beyond 32 bits"), (undefined, UNDEFINED)]


def guard_integers(
    checks: Checks, node: NodeProto, variable: Sequence[str]
) -> tuple[list[NodeProto], list[NodeProto], list[tuple[str, str]]]:
    """Nodes to run before and after it, the names of the counts, and what each counts.

    `variable` are the data inputs that are not constant. A constant beyond 2**24 may be rounded: it keeps its place
    among numbers below.
    """
    before, after = Nodes(checks), Nodes(checks)
    if node.op_type in _EXACT:
        # Sums of FP32 and of wrapped integers are a turn of 2**32 apart; near the bounds FP32 alone could not tell.
        shadow = _shadow(before, node)
        turned = after.op("Abs", after.op("Sub", shadow, after.number(node.output[0])))
        wrapped = after.op("Not", after.op("Less", turned, after.constant(_HALF_TURN)))
        count = after.count(after.op("Or", wrapped, _beyond(after, shadow, _BEYOND_31_BITS)))
        return before.nodes, after.nodes, [(count, WRAPS)]
    what = "meets or gives integers beyond 2**24, which the engine rounds there"
    if node.op_type in _PRODUCTS:
        return [], after.nodes, [(after.count(_beyond(after, after.number(node.output[0]), _FP32_EXACT)), what)]
    counts = [before.count(_beyond(before, before.number(name), _FP32_EXACT)) for name in variable]
    if node.op_type in _GROWING:
        counts.append(before.count(_beyond(before, _shadow(before, node), _FP32_EXACT)))
    total = counts[0]
    for count in counts[1:]:
        total = before.op("Add", total, count)
    found = [(total, what)]
    if node.op_type in _DIVISIONS and node.input[1] in variable:
        divides = before.op("Less", before.constant(0), before.op("Abs", before.number(node.input[1])))
        found.append((before.count(before.op("Not", divides)), "divides by zero"))
    return before.nodes, [], found


def _beyond(b: Nodes, number: str, bound: float) -> str:
    """Magnitudes of `bound` and more, or NaN."""
    return b.op("Not", b.op("Less", b.op("Abs", number), b.constant(bound)))


def _shadow(b: Nodes, node: NodeProto) -> str:
    data = set(reads(node))
    twin = NodeProto()
    twin.CopyFrom(node)
    out = b.checks.name()
    twin.name, twin.output[0] = "", out
    for position, name in enumerate(node.input):
        if name in data:
            twin.input[position] = b.number(name)
    b.nodes.append(twin)
    return out
