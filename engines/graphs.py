"""Walking a graph and the graphs in it, and taking the weights out while something else is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, shape_inference

__all__ = [
    "all_graphs", "all_nodes", "copy_of", "drop_stored_inputs", "element_types", "inferred_types", "opset_of",
    "read_anywhere", "reads_of", "with_weights", "without_weights",
]  # fmt: skip

_SMALL_BYTES = 4096
"""Tensors up to this size stay in a graph without weights: shapes, axes, scales and limits are looked at."""


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, then the bodies in it (Loop, Scan, If), outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from all_graphs(body)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of bodies included."""
    for one in all_graphs(graph):
        yield from one.node


def element_types(graph: GraphProto) -> list[tuple[str, int]]:
    """What is known of the values of one graph: name and element type, 0 where it has none."""
    values = [*graph.value_info, *graph.input, *graph.output]
    return [
        *((value.name, value.type.tensor_type.elem_type) for value in values),
        *((tensor.name, tensor.data_type) for tensor in graph.initializer),
    ]


def inferred_types(model: ModelProto) -> dict[str, int]:
    """Element type by name, of every value of the model and its bodies of which it can be found out."""
    bare, _ = without_weights(model)
    with contextlib.suppress(Exception):  # what is declared is known without inference too
        bare = shape_inference.infer_shapes(bare)
    return dict(kind for graph in all_graphs(bare.graph) for kind in element_types(graph))


def read_anywhere(graph: GraphProto) -> set[str]:
    """Names of all values that a node, a body or the outside reads."""
    read = {name for node in all_nodes(graph) for name in node.input}
    return read.union(value.name for one in all_graphs(graph) for value in one.output)


def reads_of(node: NodeProto) -> set[str]:
    """What a node reads, its bodies included: they see the values around them."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for graph in all_graphs(body):
                names.update(name for inner in graph.node for name in inner.input)
                names.update(value.name for value in graph.output)
    return names


def opset_of(model: ModelProto) -> int | None:
    """Version of the standard operators that the model imports; None where it imports none."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions) if versions else None


def copy_of(model: ModelProto) -> ModelProto:
    """A copy that may be changed."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def drop_stored_inputs(graph: GraphProto) -> None:
    """IR version 3 lists every initializer as an input too; such inputs are not part of the model's interface."""
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in stored]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """A copy whose large stored tensors are inputs of their shape, and those tensors: so that little is copied.

    Tools that only look at a graph (a checker, a converter) would read and write hundreds of megabytes else.
    """
    large = {tensor.name: tensor for tensor in model.graph.initializer if tensor.ByteSize() > _SMALL_BYTES}
    copy = ModelProto()
    _copy_fields(model, copy, leave_out="graph")
    _copy_fields(model.graph, copy.graph, leave_out="initializer")
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in large)
    listed = {value.name for value in copy.graph.input}
    for name, tensor in large.items():
        if name not in listed:
            copy.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return copy, large


def with_weights(model: ModelProto, weights: dict[str, TensorProto]) -> ModelProto:
    """Undo `without_weights` on what has become of the copy; what nobody reads any more is left out."""
    kept = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    read = read_anywhere(model.graph)
    model.graph.initializer.extend(tensor for name, tensor in weights.items() if name in read)
    return model


def _copy_fields(source: Any, target: Any, leave_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
        elif hasattr(value, "ListFields"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)
