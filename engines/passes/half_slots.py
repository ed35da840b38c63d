"""Which inputs and outputs of a node turn to half together, as ONNX types its operators."""

from __future__ import annotations

from typing import Any, NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, defs, helper

from engines.graphs import inferred_types, opset_of
from engines.passes.half_rules import FLOAT_INPUTS
from engines.plugins.ops import DOMAIN

__all__ = ["Slots", "Types", "attribute_of", "slot_inputs", "slots_of", "value_types"]

Types = dict[str, int]
"""Element type by name of a value; what is missing is unknown, or no tensor."""

_BOTH = {"tensor(float)", "tensor(float16)"}


class Slots(NamedTuple):
    """Positions of inputs and outputs that are FP32, and would be FP16 where the node runs in half.

    `refusal` is why it cannot. Without any position, and without a refusal, it has nothing to do with FP32.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    refusal: str = ""


def slots_of(node: NodeProto, types: Types, opset: int) -> Slots:
    """The inputs of FP32 whose type is a variable that may be FP16, and the outputs whose type follows from theirs.

    An input that ONNX wants in FP32 (the scales of Resize, the boxes of NonMaxSuppression) has no slot. A node with an
    FP32 output that no slot decides (it is fixed, or an attribute names it) is refused.
    """
    if not _is_float(node, types):
        return Slots()
    if node.domain == DOMAIN:
        return Slots(refusal="it works on bits, and its floats are FP32")
    if node.domain not in ("", "ai.onnx"):
        return Slots(refusal="it is no operator of ONNX")
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return Slots(refusal="its bodies stay as they are")
    if not defs.has(node.op_type, opset, ""):
        return Slots(refusal=f"opset {opset} has no such operator")
    if any(name and name not in types for name in (*node.input, *node.output)):
        return Slots(refusal="the type of something that it reads or makes is unknown")
    if node.op_type == "Cast" and attribute_of(node, "to") == TensorProto.FLOAT:
        return Slots((0,), (0,)) if types[node.input[0]] == TensorProto.FLOAT else Slots(outputs=(0,))
    return _by_schema(node, types, defs.get_schema(node.op_type, opset, ""))


def _by_schema(node: NodeProto, types: Types, schema: Any) -> Slots:
    left_out = FLOAT_INPUTS.get(node.op_type, frozenset())
    free = {one.type_param_str for one in schema.type_constraints if set(one.allowed_type_strs) >= _BOTH}
    inputs = tuple(
        i for i, name in enumerate(node.input)
        if types.get(name) == TensorProto.FLOAT and _variable(schema.inputs, i) in free and i not in left_out
    )  # fmt: skip
    bound = {_variable(schema.inputs, i) for i in inputs}
    made = tuple(i for i, name in enumerate(node.output) if types.get(name) == TensorProto.FLOAT)
    if not inputs or any(_variable(schema.outputs, i) not in bound for i in made):
        return Slots(refusal="ONNX, or an attribute, fixes its type")
    return Slots(inputs, made)


def slot_inputs(node: NodeProto, slots: Slots) -> list[str]:
    """Names of what it would read in half."""
    return [node.input[position] for position in slots.inputs]


def value_types(model: ModelProto) -> Types:
    """Element types of the values of the top graph, also behind operators that ONNX does not know: a convolution has
    the type of its weights.
    """
    types = {name: kind for name, kind in inferred_types(model).items() if kind}
    opset = opset_of(model) or 0
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type, opset, ""):
            continue
        schema: Any = defs.get_schema(node.op_type, opset, "")
        ends = ((node.input, schema.inputs), (node.output, schema.outputs))
        tensors = {
            one.type_param_str
            for one in schema.type_constraints
            if all(text.startswith("tensor(") for text in one.allowed_type_strs)
        }
        known = {_variable(schema.inputs, i): types[name] for i, name in enumerate(node.input) if name in types}
        for names, formal in ends:
            for i, name in enumerate(names):
                variable = _variable(formal, i)
                if name and variable in tensors and variable in known:
                    types.setdefault(name, known[variable])
    return types


def attribute_of(node: NodeProto, name: str) -> Any:
    """Its value, None where it is not given."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _is_float(node: NodeProto, types: Types) -> bool:
    return any(types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT for name in (*node.input, *node.output) if name)


def _variable(formal: Any, position: int) -> str:
    """Type variable of an input or output; the last one may stand for any number of them."""
    return str(formal[min(position, len(formal) - 1)].type_str) if formal else ""
