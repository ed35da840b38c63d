"""Refuse what must not be parsed or compiled, before anything else looks at it. Every refusal says what was seen.

First the parser (only one that does not recurse), then the file (kind and size), then the raw protobuf (how many
messages it would become), then the graph (nodes, depth, stored bytes, functions that call each other, tensors that
would not fit). Nothing here runs or fetches anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
from google.protobuf.internal import api_implementation
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from engines.errors import ModelRefused
from engines.files import open_plain
from engines.frontend.filekind import kind_of
from engines.frontend.wire import count_messages
from engines.graphs import without_weights
from engines.spec import USUAL_BATCH

__all__ = ["LIMITS", "Limits", "check_file", "check_model", "check_tensors"]


@dataclass(frozen=True)
class Limits:
    """What a model may hold. Sizes in bytes."""

    file_bytes: int = 2**31 - 1
    """A protobuf message cannot be larger."""
    nodes: int = 100_000
    """Over all graphs, with every call of a function counted as the nodes it becomes."""
    initializer_bytes: int = 2**31 - 1
    depth: int = 16
    """Graphs within graphs."""
    tensor_bytes: int = 2**33
    """Of one tensor, where its shape is known."""
    messages: int = 4_000_000
    """Protobuf messages that parsing would make: each costs some 100 bytes, whatever its own size."""


LIMITS = Limits()
_PARSER = "upb"
"""The one in C, which bounds its depth: what is written in Python can be made to overflow the stack (CVE-2025-4565)."""


def check_file(path: Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a file that may be parsed as ONNX. Raises ModelRefused."""
    if api_implementation.Type() != _PARSER:
        raise ModelRefused(
            f"protobuf parses with {api_implementation.Type()!r} here, which recurses as deep as a file asks it to; "
            f"expected {_PARSER!r}: unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, install a wheel of protobuf"
        )
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.file_bytes:
            raise ModelRefused(f"{path.name} has {size} bytes; expected at most {limits.file_bytes}")
        data = file.read(size)
    if not data:
        raise ModelRefused(f"{path.name} is empty; expected an ONNX model")
    kind = kind_of(data)
    if kind:
        raise ModelRefused(f"{path.name} is {kind}; expected an ONNX model")
    count = count_messages(data, limits.messages)
    if count > limits.messages:
        raise ModelRefused(
            f"{path.name} would become more than {limits.messages} protobuf messages; it is no model that anybody runs"
        )
    return data


def check_model(model: onnx.ModelProto, limits: Limits = LIMITS) -> None:
    """Raise ModelRefused where the parsed model is over a limit, recursive, or keeps data in other files."""
    _check_data(model, limits)
    depth = max(_depth(nodes) for nodes in _roots(model))
    if depth > limits.depth:
        raise ModelRefused(f"graphs are nested {depth} deep; expected at most {limits.depth}")
    count = _expanded_nodes(model)
    if count > limits.nodes:
        raise ModelRefused(f"the model has {count} nodes; expected at most {limits.nodes}")


def check_tensors(
    model: onnx.ModelProto, limits: Limits = LIMITS, rows: int = USUAL_BATCH,
    shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Raise ModelRefused where shape inference finds a tensor over the limit.

    A first dimension that is variable counts as `rows`, the others of an input as `shapes` has them (as a spec does),
    what is still variable as 1.
    """
    bare = _inferred(_sized(without_weights(model)[0], rows, shapes))
    for graph in _within([bare.graph]):
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            dims = [max(dim.dim_value, 0) for dim in tensor.shape.dim]
            counted = [size or (1 if axis else rows) for axis, size in enumerate(dims)]
            if math.prod(counted) * _item_bytes(tensor.elem_type) > limits.tensor_bytes:
                shown = [size or "?" for size in dims]
                raise ModelRefused(
                    f"tensor {value.name!r} would have shape {shown}, more than {limits.tensor_bytes} bytes"
                    f"{f' with {rows} rows' if counted[0] == rows else ''}"
                )


def _sized(bare: onnx.ModelProto, rows: int, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The same, its inputs with as many rows, and otherwise as large, as it will be run with."""
    stored = {tensor.name for tensor in bare.graph.initializer}
    for value in bare.graph.input:
        sizes = (rows, *shapes.get(value.name, ()))
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=False):
            if value.name not in stored and dim.dim_value <= 0 < size:
                dim.dim_value = size
    return bare


def _inferred(bare: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # what cannot be inferred is bounded by the memory that a build may use
        return bare


def _check_data(model: onnx.ModelProto, limits: Limits) -> None:
    stored = 0
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelRefused(f"tensor {tensor.name!r} keeps its data in another file; expected a single-file model")
        if any(dim < 0 for dim in tensor.dims):
            raise ModelRefused(f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)[:8]}")
        stored += tensor.ByteSize()
        promised = math.prod(tensor.dims) * _item_bytes(tensor.data_type)
        if promised > limits.initializer_bytes:
            raise ModelRefused(
                f"tensor {tensor.name!r} of shape {list(tensor.dims)[:8]} would have {promised} bytes; expected at "
                f"most {limits.initializer_bytes}"
            )
    if stored > limits.initializer_bytes:
        raise ModelRefused(f"stored tensors have {stored} bytes; expected at most {limits.initializer_bytes}")


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is stored anywhere in the model."""
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in _attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in [
            *attribute.sparse_tensors,
            *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        ]:
            yield from (sparse.values, sparse.indices)


def _attributes(model: onnx.ModelProto) -> Iterator[AttributeProto]:
    """Those of all nodes, and what functions take where a call leaves an attribute out."""
    for nodes in _roots(model):
        for node in nodes:
            yield from node.attribute
    for graph in _graphs(model):
        for node in graph.node:
            yield from node.attribute
    for function in model.functions:
        yield from function.attribute_proto


def _roots(model: onnx.ModelProto) -> Iterator[Sequence[NodeProto]]:
    """Nodes of all graphs that are in no other graph: that of the model, those of its functions and of its training."""
    yield model.graph.node
    for function in model.functions:
        yield function.node
        yield from (graph.node for graph in _bodies(function.attribute_proto))
    for training in model.training_info:
        yield from (training.initialization.node, training.algorithm.node)


def _graphs(model: onnx.ModelProto) -> Iterator[GraphProto]:
    """All graphs of a model but the nodes of its functions, which are in none."""
    yield from _within([model.graph])
    for function in model.functions:
        yield from _within(_bodies(function.attribute_proto))
        yield from _within(body for node in function.node for body in _bodies(node.attribute))
    for training in model.training_info:
        yield from _within([training.initialization, training.algorithm])


def _within(graphs: Iterable[GraphProto]) -> Iterator[GraphProto]:
    """The graphs and all graphs in them, without recursion: the depth is not checked yet."""
    waiting = list(graphs)
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            waiting.extend(_bodies(node.attribute))


def _bodies(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _depth(nodes: Iterable[NodeProto]) -> int:
    """Levels of graphs below these nodes, plus their own."""
    level, depth = list(nodes), 0
    while level:
        depth += 1
        level = [inner for node in level for body in _bodies(node.attribute) for inner in body.node]
    return depth


def _expanded_nodes(model: onnx.ModelProto) -> int:
    """Nodes once every call of a local function is replaced by its body. Raises ModelRefused for a call in a circle."""
    functions = {(f.domain, f.name): list(f.node) for f in model.functions}
    known: dict[tuple[str, str], int] = {}

    def size(nodes: list[NodeProto], callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in callers:
                raise ModelRefused(f"function {node.op_type!r} calls itself")
            if key in functions and key not in known:
                if len(callers) > LIMITS.depth:
                    raise ModelRefused(f"functions call each other more than {LIMITS.depth} deep")
                known[key] = size(functions[key], (*callers, key))
            total += known.get(key, 1)
            for body in _bodies(node.attribute):
                total += size(list(body.node), callers)
        return total

    training = (graph for one in model.training_info for graph in (one.initialization, one.algorithm))
    return size([node for graph in (model.graph, *training) for node in graph.node], ())


def _item_bytes(kind: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):
        return 1
