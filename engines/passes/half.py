"""Write a graph for a strongly typed target (TensorRT 11 and later) that runs in half precision (FP16).

Algebra   half(v) is the nearest number of 11 bits: |half(v) - v| <= 2**-11 |v| from 6.1e-5 to 65504. A value keeps its
          name in FP32; `<name>.half` is the same one in FP16
Pattern   nodes that `half_choice.choose_halves` has run in half
Check     types of inputs and outputs of the graph stay as they are, and so do bodies of Loop, Scan and If
Rewrite   such a node reads and makes `.half`; stored tensors are rounded here, once; what else one side makes and the
          other reads gets a Cast behind its maker. Dequantized tensors and casts to FP32 are made in the type that is
          read, in both where both are: so a convolution keeps its DequantizeLinear beside it
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.graphs import copy_of, reads_of
from engines.operators import Found, listed, operator_of
from engines.passes.half_choice import HalfChoice, choose_halves
from engines.passes.half_slots import attribute_of, slot_inputs
from engines.passes.names import FreeNames, name_nodes
from engines.passes.weights import store_constants

__all__ = ["as_half", "to_half"]

_SUFFIX = ".half"


def to_half(model: ModelProto, keep: Collection[str] = frozenset()) -> tuple[ModelProto, str]:
    """The model with FP16 where it may be; `keep` names nodes that stay in FP32, as `names.name_nodes` calls them.

    The note says how many nodes run in half, and which others stay in FP32 and why. It is the same object where nothing
    runs in half. `half_rules` lists what never does, with reasons.
    """
    stored, _ = name_nodes(store_constants(model)[0])
    choice = choose_halves(stored, keep)
    if not choice.half:
        return model, "; ".join(filter(None, ["nothing runs in half precision", _kept(stored, choice)]))
    return _Writer(stored, choice).written(), "; ".join(
        filter(None, [f"{len(choice.half)} nodes run in half precision", _kept(stored, choice)])
    )


def as_half(tensor: TensorProto, name: str) -> TensorProto:
    """An FP32 tensor rounded to FP16, under this name. What is beyond 65504 becomes infinite."""
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def _kept(model: ModelProto, choice: HalfChoice) -> str:
    """Nodes that stay in FP32, by reason."""
    found: dict[str, list[Found]] = {}
    for i, reason in choice.kept.items():
        node = model.graph.node[i]
        found.setdefault(reason, []).append((operator_of(node), node.name or next(iter(node.output), "")))
    return "; ".join(f"{listed(nodes)} in FP32: {reason}" for reason, nodes in found.items())


class _Writer:
    """One graph in the making. Values are known by the names that they have in FP32."""

    def __init__(self, model: ModelProto, choice: HalfChoice) -> None:
        self._model, self._choice = copy_of(model), choice
        self._free = FreeNames(model.graph)
        self._halves: dict[str, str] = {}
        self._as_half, self._as_float = self._read()
        self._nodes: list[NodeProto] = []

    def written(self) -> ModelProto:
        graph = self._model.graph
        nodes = list(graph.node)
        self._store(graph.initializer)
        for value in graph.input:
            self._narrow(value.name)
        for i, node in enumerate(nodes):
            if i in self._choice.half:
                self._in_half(i, node)
            elif i in self._choice.either:
                self._in_either(i, node)
            else:
                self._nodes.append(node)
                for name in node.output:
                    self._narrow(name)
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._describe()
        return self._model

    def _read(self) -> tuple[set[str], set[str]]:
        """Names of the values that are read in half, and of those that are read in FP32, if they have that type."""
        half = {value for i in self._choice.half for value in self._slots(i)}
        read = {value.name for value in self._model.graph.output}
        for i, node in enumerate(self._model.graph.node):
            if i not in self._choice.either:
                own = set(self._choice.slots[i].inputs) if i in self._choice.half else set()
                read.update(name for position, name in enumerate(node.input) if position not in own)
                read.update(reads_of(node) - set(node.input))
        for i in self._choice.either:  # the scales that they read follow what they make
            node = self._model.graph.node[i]
            if node.output[0] in half:
                half.update(self._slots(i))
            if node.output[0] in read or node.output[0] not in half:
                read.update(node.input)
            read.update(set(node.input) - set(self._slots(i)))
        return half, read

    def _slots(self, index: int) -> list[str]:
        return slot_inputs(self._model.graph.node[index], self._choice.slots[index])

    def _in_half(self, index: int, node: NodeProto) -> None:
        slots = self._choice.slots[index]
        for position in slots.inputs:
            node.input[position] = self._half(node.input[position])
        made = [node.output[position] for position in slots.outputs]
        for position, name in zip(slots.outputs, made, strict=True):
            node.output[position] = self._half(name)
        if node.op_type == "Cast" and made:
            _retarget(node)
        self._nodes.append(node)
        for name in made:
            if name in self._as_float:
                self._nodes.append(self._cast(self._half(name), name, TensorProto.FLOAT))

    def _in_either(self, index: int, node: NodeProto) -> None:
        name = node.output[0]
        is_float = name in self._as_float or name not in self._as_half
        if is_float:
            self._nodes.append(node)
        if name in self._as_half:
            twin = NodeProto()
            twin.CopyFrom(node)
            for position in self._choice.slots[index].inputs:
                twin.input[position] = self._half(twin.input[position])
            twin.output[0] = self._half(name)
            if node.op_type == "Cast":
                _retarget(twin)
            if is_float and node.name:
                twin.name = self._free(f"{node.name}{_SUFFIX}")
            self._nodes.append(twin)

    def _narrow(self, name: str) -> None:
        if name in self._as_half:
            self._nodes.append(self._cast(name, self._half(name), TensorProto.FLOAT16))

    def _cast(self, source: str, result: str, kind: int) -> NodeProto:
        word = "half" if kind == TensorProto.FLOAT16 else "float"
        return helper.make_node("Cast", [source], [result], self._free(f"{source}.to_{word}"), to=kind)

    def _store(self, tensors: list[TensorProto]) -> None:
        """Stored tensors in half, in FP32, or both."""
        for tensor in list(tensors):
            if tensor.name not in self._as_half:
                continue
            rounded = as_half(tensor, self._half(tensor.name))
            if tensor.name in self._as_float:
                tensors.append(rounded)
            else:
                tensor.CopyFrom(rounded)

    def _describe(self) -> None:
        """Types that were written down of values that have another name now, or two."""
        graph = self._model.graph
        made = {name for node in graph.node for name in node.output}
        described = list(graph.value_info)
        del graph.value_info[:]
        for value in described:
            if value.name in made:
                graph.value_info.append(value)
            if self._halves.get(value.name, "") in made:
                value.name = self._halves[value.name]
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
                graph.value_info.append(value)

    def _half(self, name: str) -> str:
        if name not in self._halves:
            self._halves[name] = self._free(f"{name}{_SUFFIX}")
        return self._halves[name]


def _retarget(cast: NodeProto) -> None:
    assert attribute_of(cast, "to") == TensorProto.FLOAT
    for attribute in cast.attribute:
        if attribute.name == "to":
            attribute.i = TensorProto.FLOAT16
