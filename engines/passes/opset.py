"""Bring the standard operators to opset 21, which every later pass, the quantizer and both targets read.

Up (to 20)        `onnx.version_converter`, and what it gets wrong or leaves out done here:
  Hardmax < 13          meant the input flattened at `axis`:  Reshape(Hardmax(Flatten(x, axis), 1), Shape(x))
  Resize 10, Upsample   counted pixels from their corners: coordinate_transformation_mode = asymmetric; the nearest one
                        is the floor where it enlarges, the ceiling where it shrinks (one Resize cannot do both)
  Scan 8                had a batch axis and lengths: no later form
Down (22 to 25)   these versions only let more types into operators that existed (and gave Cast, QuantizeLinear and
                  DequantizeLinear attributes that the checker refuses in 21), so the number is what changes. Operators
                  that came with them (Attention, RMSNormalization, RotaryEmbedding, Swish) become the function that
                  ONNX defines them by.
Check             what has no form in opset 21 keeps the model in its own opset, and the note says what it is: a target
                  may well take it as it is
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, defs, helper, numpy_helper

from engines.frontend.onnx import NEWEST_OPSET
from engines.graphs import all_graphs, all_nodes, drop_stored_inputs, opset_of, with_weights, without_weights
from engines.operators import is_function
from engines.passes.weights import store_constants

__all__ = ["HIGHEST", "IR_VERSION", "LOWEST", "OPSET", "to_opset_21"]

OPSET = 21
LOWEST, HIGHEST = 1, NEWEST_OPSET
IR_VERSION = 10
"""The first that knows opset 21."""
_FLATTENING_UNTIL, _CORNERS_UNTIL = 12, 10


def to_opset_21(model: ModelProto) -> tuple[ModelProto, str]:
    """The model in opset 21; else the model itself, and why. It is the same object where nothing changes."""
    present = opset_of(model)
    if present is None or present == OPSET:
        return model, ""
    if not LOWEST <= present <= HIGHEST:
        return model, f"opset {present} is kept: conversion is from opset {LOWEST} to {HIGHEST}"
    bare, weights = without_weights(model)
    try:
        found = _raise(bare, present) if present < OPSET else _lower(bare, present)
    except Exception as error:  # an assertion of the converter or the inliner, behind a path of its source
        found = f"the converter of ONNX says: {str(error).splitlines()[0].rpartition('failed: ')[2]}"
    if isinstance(found, str):
        return model, f"opset {present} is kept: {found}"
    converted = with_weights(store_constants(found)[0], weights)  # axes and limits that were attributes
    converted.ir_version = max(converted.ir_version, IR_VERSION)
    _restore_interface(model, converted)
    return converted, ""


def _restore_interface(model: ModelProto, converted: ModelProto) -> None:
    """Inputs and outputs as they were declared: the converter writes down what it infers of them."""
    for old, new in ((model.graph.input, converted.graph.input), (model.graph.output, converted.graph.output)):
        del new[:]
        new.extend(old)
    drop_stored_inputs(converted.graph)


def _raise(model: ModelProto, present: int) -> ModelProto | str:
    reason = _without_a_form(model, present)
    if reason:
        return reason
    nearest = _nearest_modes(model, present)
    if isinstance(nearest, str):
        return nearest
    if present <= _FLATTENING_UNTIL:
        for graph in all_graphs(model.graph):
            _flatten_hardmax(graph)
    converted: ModelProto = onnx.version_converter.convert_version(model, OPSET)
    if present <= _CORNERS_UNTIL:
        _count_from_corners(converted, nearest)
    return converted


def _without_a_form(model: ModelProto, present: int) -> str:
    if present == 8 and any(node.op_type == "Scan" and not node.domain for node in all_nodes(model.graph)):
        return "Scan of opset 8 has no form in later ones"
    return ""


def _flatten_hardmax(graph: GraphProto) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Hardmax" or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        flat, shape, hard = f"{y}_flattened", f"{y}_shape", f"{y}_of_flattened"
        nodes += [
            helper.make_node("Flatten", [x], [flat], axis=axis),
            helper.make_node("Hardmax", [flat], [hard], node.name, axis=1),
            helper.make_node("Shape", [x], [shape]),
            helper.make_node("Reshape", [hard, shape], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _nearest_modes(model: ModelProto, present: int) -> dict[str, str] | str:
    """`nearest_mode` by output of each Resize of opset 10; a text says why there is none. Upsample has the floor."""
    modes: dict[str, str] = {}
    if present != _CORNERS_UNTIL:
        return modes
    stored = {t.name: t for graph in all_graphs(model.graph) for t in graph.initializer}
    for node in all_nodes(model.graph):
        if node.op_type != "Resize" or _attribute(node, "mode") not in (b"", b"nearest"):
            continue
        if node.input[1] not in stored:
            return f"the scales of Resize {node.name or node.output[0]!r} are computed"
        scales = numpy_helper.to_array(stored[node.input[1]])
        if np.any(scales < 1) and np.any(scales > 1):
            return f"Resize {node.name or node.output[0]!r} enlarges one axis and shrinks another"
        modes[node.output[0]] = "ceil" if np.any(scales < 1) else "floor"
    return modes


def _count_from_corners(model: ModelProto, nearest: Mapping[str, str]) -> None:
    for node in all_nodes(model.graph):
        if node.op_type == "Resize" and node.domain == "":
            added = {"coordinate_transformation_mode": "asymmetric"}
            if _attribute(node, "mode") in (b"", b"nearest"):
                added["nearest_mode"] = nearest.get(node.output[0], "floor")
            kept = [a for a in node.attribute if a.name not in added]
            del node.attribute[:]
            node.attribute.extend([*kept, *(helper.make_attribute(*item) for item in added.items())])


def _attribute(node: NodeProto, name: str) -> bytes:
    return next((attribute.s for attribute in node.attribute if attribute.name == name), b"")


def _lower(model: ModelProto, present: int) -> ModelProto | str:
    functions: set[str] = set()
    for node in all_nodes(model.graph):
        if node.domain not in ("", "ai.onnx") or defs.has(node.op_type, OPSET, ""):
            continue
        if not defs.has(node.op_type, present, ""):
            return f"opset {present} has no operator {node.op_type}"
        if not is_function("", node.op_type, present):
            return f"{node.op_type} (node {node.name or node.output[0]!r}) has no form in opset {OPSET}"
        functions.add(node.op_type)
        _write_defaults(node, defs.get_schema(node.op_type, present, ""))
    if functions:
        model = _inlined(model, sorted(functions))
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return model


def _write_defaults(node: NodeProto, schema: defs.OpSchema) -> None:
    """The function's body refers to the node's attributes, also to those left out."""
    given = {attribute.name for attribute in node.attribute}
    defaults = [attribute.default_value for attribute in schema.attributes.values()]
    node.attribute.extend(value for value in defaults if value.name and value.name not in given)


def _inlined(model: ModelProto, functions: list[str]) -> ModelProto:
    """These operators as their functions, which depend on the types of what they read: the inliner has to be told."""
    typed = onnx.shape_inference.infer_shapes(model)
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    inlined: ModelProto = onnx.inliner.inline_selected_functions(typed, [("", name) for name in functions], False, True)
    del inlined.graph.value_info[:]
    inlined.graph.value_info.extend(model.graph.value_info)
    return inlined
