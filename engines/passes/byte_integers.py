"""Compute on whole numbers of 8 and 16 bits as ONNX Runtime does: OpenVINO 2026.4 does not wrap them, and rounds.

Algebra   ONNX Runtime's numbers of w bits wrap: -1 is 2**w - 1 unsigned, 2**(w - 1) is -2**(w - 1) signed. OpenVINO
          stops at the ends of their range instead (255 + 1 = 255), and rounds a quotient (5 / 9 = 1).
          In 32 bits both are exact, and the cast of those to w bits keeps the lowest ones:
          of b = y & (2**w - 1), the signed number is (b xor 2**(w - 1)) - 2**(w - 1).
Pattern   Abs, Add, Div, Mul, Neg, Sub, BitShift of 8 or 16 bits; Cast of a float to one of them
Check     the opset is 18 or later, which has BitwiseAnd and BitwiseXor
Rewrite   Cast to INT32 (UINT32 for BitShift), the operator, the lowest bits, and Cast back
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.graphs import all_graphs, all_nodes, copy_of, element_types, inferred_types, opset_of
from engines.passes.guard_ops import Checks, Nodes

__all__ = ["with_wrapping_bytes"]

_OLDEST_OPSET = 18
_BITS: dict[int, tuple[int, bool]] = {
    TensorProto.INT8: (8, True), TensorProto.INT16: (16, True), TensorProto.UINT8: (8, False),
    TensorProto.UINT16: (16, False),
}  # fmt: skip
"""Bits, and whether one of them is a sign."""
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_OPERATORS = frozenset({"Abs", "Add", "BitShift", "Div", "Mul", "Neg", "Sub"})
"""These and Cast."""


def with_wrapping_bytes(model: ModelProto) -> ModelProto:
    """A copy with these operators written out; the model itself where there are none."""
    if (opset_of(model) or 0) < _OLDEST_OPSET or not _may_have_any(model):
        return model
    kinds = inferred_types(model)
    if not any(_kind_of(node, kinds) for node in all_nodes(model.graph)):
        return model
    copy, checks = copy_of(model), Checks("bitserve.byte")
    for graph in all_graphs(copy.graph):
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            kind = _kind_of(node, kinds)
            graph.node.extend(_written_out(node, kind, checks) if kind else [node])
    return copy


def _may_have_any(model: ModelProto) -> bool:
    """Looked at without inference, which takes a while: most models have none."""
    graphs = list(all_graphs(model.graph))
    declared = {kind for graph in graphs for _, kind in element_types(graph)}
    return bool(declared & _BITS.keys()) or any(_target(node) in _BITS for graph in graphs for node in graph.node)


def _target(node: NodeProto) -> int:
    """Of a Cast; else 0."""
    return next((a.i for a in node.attribute if a.name == "to"), 0) if node.op_type == "Cast" else 0


def _kind_of(node: NodeProto, kinds: dict[str, int]) -> int:
    """The element type of 8 or 16 bits that it computes in, or 0."""
    if node.domain not in ("", "ai.onnx"):
        return 0
    source = kinds.get(node.input[0], 0) if node.input else 0
    if node.op_type == "Cast":
        return _target(node) if source in _FLOATS and _target(node) in _BITS else 0
    return source if node.op_type in _OPERATORS and source in _BITS else 0


def _written_out(node: NodeProto, kind: int, checks: Checks) -> list[NodeProto]:
    b = Nodes(checks)
    wide = TensorProto.UINT32 if node.op_type == "BitShift" else TensorProto.INT32
    if node.op_type == "Cast":
        number = b.op("Cast", node.input[0], to=wide)
    else:
        number = b.checks.name()
        inputs = [b.op("Cast", name, to=wide) for name in node.input]
        twin = helper.make_node(node.op_type, inputs, [number], name=node.name)
        twin.attribute.extend(node.attribute)
        b.nodes.append(twin)
    _keep_lowest(b, number, wide, kind, node.output[0])
    return b.nodes


def _keep_lowest(b: Nodes, number: str, wide: int, kind: int, output: str) -> None:
    bits, is_signed = _BITS[kind]
    dtype = helper.tensor_dtype_to_np_dtype(wide)
    number = b.op("BitwiseAnd", number, b.constant(2**bits - 1, dtype))
    if is_signed:
        sign = b.constant(2 ** (bits - 1), dtype)
        number = b.op("Sub", b.op("BitwiseXor", number, sign), sign)
    b.nodes.append(helper.make_node("Cast", [number], [output], to=kind))
