"""The layers that multiply by stored weights, and which axis of the weights is which; adding numbers to their outputs.

Conv    W [out, in / group, ...]
Gemm    W [in, out], or [out, in] where it is transposed
MatMul  W [in, out], on the right
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, TypeVar, cast

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.graphs import all_graphs, all_nodes, copy_of
from engines.passes.names import FreeNames

__all__ = [
    "Change", "Weighted", "attribute_of", "reader_counts", "scalable", "weighted_layers",
    "with_changed_outputs",
]  # fmt: skip

T = TypeVar("T")
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})


class Weighted(NamedTuple):
    """A layer of the top graph. `shape` is that of the weights; the others are axes of it, and the group count."""

    node: NodeProto
    shape: tuple[int, ...]
    in_axis: int
    out_axis: int
    groups: int = 1

    @property
    def weights(self) -> str:
        return str(self.node.input[1])

    @property
    def channel_axis(self) -> int:
        """Where the output has its channels."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.shape[1] == 1


def weighted_layers(graph: GraphProto) -> list[Weighted]:
    """Those whose weights are floats stored in the graph, in the order of the nodes."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in _FLOATS}
    found = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2 or node.input[1] not in stored:
            continue
        shape = tuple(stored[node.input[1]].dims)
        if node.op_type == "Conv":
            found.append(Weighted(node, shape, 1, 0, attribute_of(node, "group", 1)))
        elif node.op_type == "Gemm":
            transposed = attribute_of(node, "transB", 0)
            found.append(Weighted(node, shape, 1, 0) if transposed else Weighted(node, shape, 0, 1))
        elif node.op_type == "MatMul" and len(shape) == 2:
            found.append(Weighted(node, shape, 0, 1))
    return found


def attribute_of(node: NodeProto, name: str, otherwise: T) -> T:
    """The value of an attribute as Python has it."""
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return otherwise if found is None else cast("T", helper.get_attribute_value(found))


def reader_counts(graph: GraphProto) -> Counter[str]:
    """How often each value is read: by nodes, those of bodies included, and as an output."""
    counts = Counter(name for node in all_nodes(graph) for name in node.input)
    counts.update(value.name for one in all_graphs(graph) for value in one.output)
    return counts


class Change(NamedTuple):
    """What is to become of a layer's output: `scale` times it, plus `shift`. One number (float64) a channel each."""

    scale: np.ndarray
    shift: np.ndarray


def scalable(graph: GraphProto) -> set[str]:
    """Names of the layers whose output can be scaled: weights of their own, and no computed bias."""
    counts, stored = reader_counts(graph), {tensor.name for tensor in graph.initializer}
    return {
        layer.node.name
        for layer in weighted_layers(graph)
        if counts[layer.weights] == 1 and (not any(layer.node.input[2:]) or layer.node.input[2] in stored)
    }


def with_changed_outputs(model: ModelProto, changes: Mapping[str, Change]) -> ModelProto:
    """A copy in which the layers named in `changes` write what is said there. `scalable` says whose scale may not be 1.

    The scale goes into the weights, the shift into the bias: the one that the layer has, a new one where it has none,
    and for a MatMul the constant of the Add behind it. Where that cannot be, because the bias is computed, an Add is
    put behind the layer. A bias that others read stays as it is for them.
    """
    copy = copy_of(model)
    editor = _Editor(copy.graph)
    layers = {layer.node.name: layer for layer in weighted_layers(copy.graph)}
    for name, change in changes.items():
        editor.change(layers[name], change)
    editor.finish()
    return copy


class _Editor:
    def __init__(self, graph: GraphProto) -> None:
        self._graph, self._names, self._reads = graph, FreeNames(graph), reader_counts(graph)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._added: dict[str, NodeProto] = {}

    def change(self, layer: Weighted, change: Change) -> None:
        node = layer.node
        weights = numpy_helper.to_array(self._stored[layer.weights])
        if not np.all(change.scale == 1):
            along = [-1 if axis == layer.out_axis else 1 for axis in range(weights.ndim)]
            scaled = (weights * change.scale.reshape(along)).astype(weights.dtype)
            self._stored[layer.weights].CopyFrom(numpy_helper.from_array(scaled, layer.weights))
        if node.op_type == "MatMul":
            self._shift(layer, self._add_behind(node), change.shift, np.float64(1), weights.dtype)
        else:
            slot, beta = _Slot(node, 2), attribute_of(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
            self._shift(layer, slot, change.shift, change.scale * beta, weights.dtype)
            if slot.name in self._stored:
                kept = [attribute for attribute in node.attribute if attribute.name != "beta"]
                del node.attribute[:]
                node.attribute.extend(kept)

    def _shift(
        self, layer: Weighted, slot: _Slot | None, shift: np.ndarray, scale: np.ndarray | np.float64, kind: np.dtype
    ) -> None:
        node = layer.node
        if slot is None or (slot.name and slot.name not in self._stored):
            ones = [1] * (len(layer.shape) - 2 if node.op_type == "Conv" else 0)
            self._insert_add(node, shift.reshape(-1, *ones).astype(kind))
        elif not slot.name:
            slot.fill(self._store(f"{layer.weights}_bias", shift.astype(kind)))
        else:
            bias = scale * numpy_helper.to_array(self._stored[slot.name]).astype(np.float64) + shift
            self._replace(slot, bias.astype(kind))

    def finish(self) -> None:
        if self._added:
            nodes = list(self._graph.node)
            del self._graph.node[:]
            for node in nodes:
                self._graph.node.extend([node, *([self._added[node.name]] if node.name in self._added else [])])

    def _add_behind(self, node: NodeProto) -> _Slot | None:
        """The constant that is added to all that the node writes, where one is and it is alone in reading that."""
        reader = next((one for one in self._graph.node if node.output[0] in one.input), None)
        if reader is None or reader.op_type != "Add" or self._reads[node.output[0]] != 1:
            return None
        other = 1 if reader.input[0] == node.output[0] else 0
        return _Slot(reader, other) if reader.input[other] in self._stored else None

    def _insert_add(self, node: NodeProto, numbers: np.ndarray) -> None:
        out = node.output[0]
        node.output[0] = self._names(f"{out}_before")
        stored = self._store(f"{out}_shift", numbers)
        name = self._names(f"{node.name}_shift")
        self._added[node.name] = helper.make_node("Add", [node.output[0], stored], [out], name=name)

    def _replace(self, slot: _Slot, numbers: np.ndarray) -> None:
        if self._reads[slot.name] == 1:
            self._stored[slot.name].CopyFrom(numpy_helper.from_array(numbers, slot.name))
            return
        self._reads[slot.name] -= 1
        slot.fill(self._store(slot.name, numbers))

    def _store(self, wanted: str, numbers: np.ndarray) -> str:
        name = self._names(wanted)
        self._graph.initializer.append(numpy_helper.from_array(numbers, name))
        self._stored[name] = self._graph.initializer[-1]
        self._reads[name] = 1
        return name


class _Slot:
    """One input of a node, which may not be there yet."""

    def __init__(self, node: NodeProto, index: int) -> None:
        self._node, self._index = node, index

    @property
    def name(self) -> str:
        return self._node.input[self._index] if len(self._node.input) > self._index else ""

    def fill(self, name: str) -> None:
        if len(self._node.input) > self._index:
            self._node.input[self._index] = name
        else:
            self._node.input.append(name)
