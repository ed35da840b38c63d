"""Refuse what must not be parsed or compiled, before anything else looks at it. Every refusal says what was seen.

First the file (kind and size), then the raw protobuf (how many messages it would become), then the graph (nodes,
depth, stored bytes, functions that call each other, tensors that would not fit). Nothing here runs or fetches anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from engines.errors import ModelRefused
from engines.files import open_plain
from engines.frontend.filekind import kind_of
from engines.frontend.wire import count_messages

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


def check_file(path: Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a file that may be parsed as ONNX. Raises ModelRefused."""
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
    depth = max([_depth(model.graph.node), *(_depth(function.node) for function in model.functions)])
    if depth > limits.depth:
        raise ModelRefused(f"graphs are nested {depth} deep; expected at most {limits.depth}")
    count = _expanded_nodes(model)
    if count > limits.nodes:
        raise ModelRefused(f"the model has {count} nodes; expected at most {limits.nodes}")


def check_tensors(model: onnx.ModelProto, limits: Limits = LIMITS) -> None:
    """Raise ModelRefused where shape inference finds a tensor over the limit; variable dimensions count as 1."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # what cannot be inferred is bounded by the memory that a build may use
        inferred = model
    for graph in _graphs(inferred.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            elements = math.prod(dim.dim_value if dim.dim_value > 0 else 1 for dim in tensor.shape.dim)
            if elements * _item_bytes(tensor.elem_type) > limits.tensor_bytes:
                dims = [dim.dim_value if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim]
                raise ModelRefused(
                    f"tensor {value.name!r} would have shape {dims}, more than {limits.tensor_bytes} bytes"
                )


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
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]:
                yield from (sparse.values, sparse.indices)


def _nodes(model: onnx.ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for body in _bodies(node):
                for graph in _graphs(body):
                    yield from graph.node


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs in it, without recursion: the depth is not checked yet."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            waiting.extend(_bodies(node))


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _depth(nodes: Iterable[NodeProto]) -> int:
    """Levels of graphs below these nodes, plus their own."""
    level, depth = list(nodes), 0
    while level:
        depth += 1
        level = [inner for node in level for body in _bodies(node) for inner in body.node]
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
            for body in _bodies(node):
                total += size(list(body.node), callers)
        return total

    return size(list(model.graph.node), ())


def _item_bytes(kind: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):
        return 1
