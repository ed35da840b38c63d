"""Write a half-precision graph as what OpenVINO runs on a CPU: the same weights, computed in FP32.

Algebra   every FP16 and BF16 number is an FP32 number; what is left out is the rounding to half after each operator
Pattern   stored halves, casts to half, outputs of operators that name a half as their type
Check     none is needed: inputs and outputs keep their types, so clients see no change
Rewrite   stored halves widened, casts to half become casts to FP32; Cast after each half input, before each half output

The reference of the widened graph is exact in what the engine computes, so no bound has to leave room for halves.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.graphs import all_graphs, all_nodes, copy_of, drop_stored_inputs

__all__ = ["has_halves", "widen_halves"]

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name the type of a result."""


def has_halves(model: ModelProto) -> bool:
    """Whether anything in it is stored, given, taken or computed in half precision."""
    for graph in all_graphs(model.graph):
        values = [*graph.input, *graph.output, *graph.value_info]
        if any(value.type.tensor_type.elem_type in _HALVES for value in values):
            return True
        if any(tensor.data_type in _HALVES for tensor in graph.initializer):
            return True
    return any(
        (a.name in _TYPES and a.i in _HALVES) or (a.HasField("t") and a.t.data_type in _HALVES)
        for node in all_nodes(model.graph)
        for a in node.attribute
    )


def widen_halves(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with all of it computed in FP32; the same object where it has no halves."""
    if not has_halves(model):
        return model, ""
    copy = copy_of(model)
    drop_stored_inputs(copy.graph)
    for graph in all_graphs(copy.graph):
        _widen(graph, is_top=graph is copy.graph)
    for node in all_nodes(copy.graph):
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type in _HALVES:
                attribute.t.CopyFrom(_wide(attribute.t))
    _cast_interface(copy.graph)
    return copy, "half precision is computed in FP32: its rounding is left out"


def _widen(graph: GraphProto, *, is_top: bool) -> None:
    for tensor in graph.initializer:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(_wide(tensor))
    values = [*graph.value_info] if is_top else [*graph.value_info, *graph.input, *graph.output]
    for value in values:
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _wide(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor), np.float32), tensor.name)


def _cast_interface(graph: GraphProto) -> None:
    """The graph's own half inputs and outputs, under new names inside."""
    renamed: dict[str, str] = {}
    before, after = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type in _HALVES:
            renamed[value.name] = f"{value.name}_wide"
            before.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT))
    for value in graph.output:
        kind = value.type.tensor_type.elem_type
        if kind in _HALVES:
            inside = renamed.setdefault(value.name, f"{value.name}_wide")
            after.append(_cast(inside, value.name, kind))
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = renamed.get(name, name)
    for node in all_nodes(graph):  # bodies see the values around them
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _rename_reads(body, renamed)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)


def _rename_reads(body: GraphProto, renamed: dict[str, str]) -> None:
    own = {name for node in body.node for name in node.output} | {value.name for value in body.input}
    for node in body.node:
        for position, name in enumerate(node.input):
            if name not in own:
                node.input[position] = renamed.get(name, name)


def _cast(source: str, result: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=kind)
