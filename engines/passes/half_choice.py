"""Decide which nodes run in half precision. Pure: reads a graph and changes nothing; every FP16 pass asks here.

1. Blocked: what its caller wants in FP32, what ONNX types otherwise, what `half_rules.KEPT` lists, recurrent layers
   with lengths, squares, divisions by something computed, and what computes with sizes; also whoever reads a constant
   that half cannot hold, or what such a constant has been carried into (a mask of -3e38), or a quantized tensor whose
   scale half cannot hold.
2. Of the rest, layers with weights run in half, and so does what reads from them, or leads to such a node, through
   others of the rest: between two that stay in FP32 a detour through half would only cost conversions and digits.
   Binary layers make FP32 of whole numbers; as plugins they round it to half at no cost, so what reads from them does
   run in half.

What dequantizes, and what casts whole numbers to FP32, makes either type: it follows each of its readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from engines.graphs import opset_of, reads_of
from engines.passes import half_rules as rules
from engines.passes.half_slots import Slots, Types, attribute_of, slot_inputs, slots_of, value_types
from engines.passes.sequence_lens import has_lengths
from engines.plugins.ops import DOMAIN

__all__ = ["LENGTHS_REASON", "HalfChoice", "choose_halves"]

LENGTHS_REASON = "TensorRT does not read lengths of sequences (`sequence_lens`) in half"
"""It keeps the layer, not its weights, from being half."""
_ALONE = "nothing beside it runs in half"
_ASKED = "it is to stay in FP32"
_SIZES = "it computes with sizes: from 2048 on half leaves numbers out"
_SCALED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_SCALE = 1
_BINARY = frozenset({"BinaryConv2d", "BinaryGemm"})
_NUMBERS = frozenset(
    {
        TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8,
        TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16,
        TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip


class HalfChoice(NamedTuple):
    """About the nodes of the top graph, by position.

    `half` run in half. `either` make FP16, FP32 or both, as they are read. `kept` stay in FP32, and why; nodes that
    make nothing of FP32 are in none of them. `slots` has an entry for each node.
    """

    half: frozenset[int]
    either: frozenset[int]
    kept: dict[int, str]
    slots: list[Slots]
    types: Types


def choose_halves(model: ModelProto, keep: Collection[str] = frozenset()) -> HalfChoice:
    """`keep` names nodes that are to stay in FP32. Constants have to be stored (`weights.store_constants`)."""
    types, opset = value_types(model), opset_of(model) or 0
    nodes = list(model.graph.node)
    slots = [slots_of(node, types, opset) for node in nodes]
    blocks = _Blocks(model, keep)
    either, blocked = set(), dict[int, str]()
    for i, node in enumerate(nodes):
        reason = blocks.reason(node, slots[i]) if any(slots[i]) else ""
        if reason:
            blocked[i] = reason
        elif any(slots[i]) and _makes_either(node, types):
            either.add(i)
        blocks.pass_on(node, slots[i], is_blocked=bool(reason))
    free = [i for i in range(len(nodes)) if slots[i].inputs and i not in blocked and i not in either]
    half = _connected(model, free, slots) & set(free)
    alone = {i: _ALONE for i in free if i not in half and slots[i].outputs}
    return HalfChoice(frozenset(half), frozenset(either), dict(sorted({**blocked, **alone}.items())), slots, types)


class _Blocks:
    """Tells why a node has to stay in FP32; nodes are shown in their order."""

    def __init__(self, model: ModelProto, keep: Collection[str]) -> None:
        self._keep = keep
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._ranges: dict[str, tuple[float, float]] = {}
        self._sizes: set[str] = set()
        self._wide: set[str] = set()
        self._unscaled: set[str] = set()

    def reason(self, node: NodeProto, slots: Slots) -> str:
        if node.name in self._keep:
            return _ASKED
        return slots.refusal or self._by_operator(node) or self._by_values(node, slots)

    def pass_on(self, node: NodeProto, slots: Slots, *, is_blocked: bool) -> None:
        """What the node makes is marked as what it reads is."""
        given = [name for name in node.input if name and name not in self._stored]
        carries = node.op_type in rules.CARRIERS
        if node.op_type in ("Shape", "Size") or (given and self._sizes.issuperset(given) and not self._is_shaped(node)):
            self._sizes.update(node.output)
        beyond = any(self._range(node.input[i])[1] >= rules.OVERFLOW for i in slots.inputs)
        if carries and (beyond or not self._wide.isdisjoint(given)):
            self._wide.update(node.output)
        if (carries and not self._unscaled.isdisjoint(given)) or (is_blocked and node.op_type == "DequantizeLinear"):
            self._unscaled.update(node.output)

    def _is_shaped(self, node: NodeProto) -> bool:
        """Whether sizes only say where the data goes: it is no size itself."""
        return node.op_type == "ConstantOfShape" or (
            node.op_type in rules.CARRIERS and self._range(node.input[0])[1] > 0
        )

    def _by_operator(self, node: NodeProto) -> str:
        if node.op_type in rules.KEPT:
            return rules.KEPT[node.op_type]
        if node.op_type in rules.RECURRENT and has_lengths(node):
            return LENGTHS_REASON
        if node.op_type == "Mul" and node.input[0] == node.input[1]:
            return rules.KEPT["Pow"]
        if node.op_type == "Div" and node.input[1] not in self._stored.keys() | self._sizes:
            return rules.KEPT["Reciprocal"]
        return ""

    def _by_values(self, node: NodeProto, slots: Slots) -> str:
        read = slot_inputs(node, slots)
        if node.op_type in _SCALED:
            return self._by_scale(node.input[_SCALE])
        for name in read:
            low, high = self._range(name)
            if high >= rules.OVERFLOW and node.op_type != "Clip":  # a bound that becomes infinite binds nothing in half
                return f"its constant {name!r} holds {high:.3g}, half 65504 at most"
            if low and high <= rules.UNDERFLOW:
                return f"its constant {name!r} would be 0 in half: it holds {high:.3g} at most"
        if not self._wide.isdisjoint(read):
            return "a constant beyond 65504 may have gone into what it reads"
        if not self._unscaled.isdisjoint(read):
            return "it reads a quantized tensor that is dequantized in FP32"
        computed = [name for name in read if name not in self._stored]
        return _SIZES if computed and self._sizes.issuperset(computed) else ""

    def _by_scale(self, name: str) -> str:
        if name not in self._stored:
            return "its scale is computed"
        low, high = self._range(name)
        if low < rules.SMALLEST_NORMAL or high >= rules.OVERFLOW:
            return f"its scale {name!r} is {low:.3g} to {high:.3g}: half has all its digits from 6.1e-5 to 65504"
        return ""

    def _range(self, name: str) -> tuple[float, float]:
        """The smallest and the largest finite magnitude other than 0 of a stored FP32 tensor; 0, 0 where none is."""
        if name not in self._ranges:
            tensor = self._stored.get(name)
            is_float = tensor is not None and tensor.data_type == TensorProto.FLOAT
            self._ranges[name] = _magnitudes(numpy_helper.to_array(tensor)) if tensor and is_float else (0.0, 0.0)
        return self._ranges[name]


def _magnitudes(array: np.ndarray) -> tuple[float, float]:
    size = np.abs(array)
    size = size[np.isfinite(size) & (size > 0)]
    return (float(size.min()), float(size.max())) if size.size else (0.0, 0.0)


def _makes_either(node: NodeProto, types: Types) -> bool:
    if node.op_type == "Cast":
        return attribute_of(node, "to") == TensorProto.FLOAT and types[node.input[0]] in _NUMBERS
    return node.op_type == "DequantizeLinear"


def _connected(model: ModelProto, free: Sequence[int], slots: Sequence[Slots]) -> set[int]:
    """Of the free nodes, those with weights, those that read what comes from one, and those that lead to these."""
    nodes = model.graph.node
    layers = [i for i, node in enumerate(nodes) if node.domain == DOMAIN and node.op_type in _BINARY]
    free = sorted([*free, *layers])
    maker = {nodes[i].output[position]: i for i in free for position in slots[i].outputs}
    maker |= {nodes[i].output[0]: i for i in layers}
    makers: dict[int, set[int]] = {
        i: {maker[name] for name in slot_inputs(nodes[i], slots[i]) if name in maker} for i in free
    }
    readers: dict[int, set[int]] = {i: set() for i in free}
    for i, found in makers.items():
        for one in found:
            readers[one].add(i)
    tables = _embeddings(model)
    seeds = {i for i in free if nodes[i].op_type in rules.WEIGHTED or i in tables} | set(layers)
    return _spread(_spread(seeds, free, makers), free[::-1], readers)


def _spread(seeds: Set[int], order: Iterable[int], neighbours: Mapping[int, Set[int]]) -> set[int]:
    found = set(seeds)
    for i in order:
        if neighbours[i] & found:
            found.add(i)
    return found


def _embeddings(model: ModelProto) -> set[int]:
    """Lookups in a stored table, which may be most of a model, if not all that is done is to compare what is found."""
    stored = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    compared, used = set[str](), set[str]()
    for node in model.graph.node:
        (compared if node.op_type in rules.COMPARISONS else used).update(reads_of(node))
    used.update(value.name for value in model.graph.output)
    return {
        i for i, node in enumerate(model.graph.node)
        if node.op_type == "Gather" and node.input[0] in stored
        and (node.output[0] in used or node.output[0] not in compared)
    }  # fmt: skip
