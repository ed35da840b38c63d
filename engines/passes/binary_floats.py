"""Write the `bnn` operators of a file in floats, so that every binary model has one form, however it was stored.

Algebra   bits are Where(x >= t, 1, low), a layer is a convolution or product of them with weights of -1 and +1, then
          Mul, Add and PRelu with shifts; where a threshold is flipped, (d < t) != 1 is not (-d >= 1 - t): weights of
          the other sign, and 1 - t
Pattern   operators of domain `bnn` whose functions in the file are word for word those of `engines.plugins.bodies`
Check     bits are read by such operators alone, weights are stored, floats of all of them fit into a file; otherwise
          nothing is written, and the functions are inlined as any other
Rewrite   the finding of binary layers packs them again, last: proofs, ranges and targets know floats
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.graphs import all_graphs, all_nodes, copy_of, read_anywhere, reads_of
from engines.passes.half_slots import attribute_of
from engines.passes.names import FreeNames
from engines.plugins.bodies import functions
from engines.plugins.ops import DOMAIN, unpack_bits

__all__ = ["binary_floats"]

_MOST_BYTES = 2**31 - 1
_CONVOLVE = frozenset({"BinaryConv2d", "BinaryThreshold2d"})
_MULTIPLY = frozenset({"BinaryGemm", "BinaryThreshold"})
_TO_BITS = frozenset({"BinaryPack", "BinaryThreshold2d", "BinaryThreshold", "BinaryMaxPool"})
_WEIGHTS = 1
_STORED_FROM = 1
"""All inputs of an operator but the first are stored."""


def binary_floats(model: ModelProto) -> tuple[ModelProto, str]:
    """The model without `bnn` operators. It is the same object where it has none, or others of that name."""
    if not any(node.domain == DOMAIN for node in all_nodes(model.graph)):
        return model, ""
    why = _obstacle(model)
    if why:
        return model, f"operators of domain {DOMAIN!r} are read as the functions that they are: {why}"
    copy = copy_of(model)
    written = _Floats(copy)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        copy.graph.node.extend(written.of(node) if node.domain == DOMAIN else [node])
    _drop(copy)
    return copy, f"{written.layers} layers were stored in bits"


def _obstacle(model: ModelProto) -> str:
    """Why the file's operators cannot be taken for those that are known here; nothing where they can."""
    own, known = {one.name: one for one in model.functions if one.domain == DOMAIN}, functions()
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if len(nodes) < sum(node.domain == DOMAIN for node in all_nodes(model.graph)):
        return "some are in the bodies of others"
    if not {node.op_type for node in nodes} <= {one.name for one in known}:
        return "some are not known here"
    if any(own.get(one.name) != one for one in known if one.name in {node.op_type for node in nodes}):
        return "their functions are others"
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if any(name not in stored for node in nodes for name in node.input[_STORED_FROM:]):
        return "some have weights that are computed"
    made = {node.output[0] for node in nodes if node.op_type in _TO_BITS}
    bits = {node.input[0] for node in nodes if node.op_type != "BinaryPack"}
    others = {name for node in model.graph.node if node.domain != DOMAIN for name in reads_of(node)}
    packs = {node.input[0] for node in nodes if node.op_type == "BinaryPack"}
    if not bits <= made or made & (others | packs | {value.name for value in model.graph.output}):
        return "bits come from others, or go there"
    weights = [stored[node.input[_WEIGHTS]] for node in nodes if node.op_type in _CONVOLVE | _MULTIPLY]
    if 4 * 32 * sum(math.prod(tensor.dims) for tensor in weights) > _MOST_BYTES:
        raise ModelRefused(f"binary layers with more than {_MOST_BYTES} bytes of weights in floats")
    return ""


class _Floats:
    """Writes one operator after another. `graph` is the model's own, which gets the weights."""

    def __init__(self, model: ModelProto) -> None:
        self._graph, self.layers = model.graph, 0
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = FreeNames(model.graph)
        self._lows, self._ranks = _needs(model.graph.node)
        self._floats: dict[tuple[str, int], str] = {}

    def of(self, node: NodeProto) -> Iterable[NodeProto]:
        """The nodes that stand for it."""
        if node.op_type == "BinaryPack":
            return self._packed(node, node.input[0], self._array(node, 1), strict=bool(attribute_of(node, "strict")))
        if node.op_type == "BinaryMaxPool":
            return self._pooled(node)
        self.layers += 1
        return self._to_bits(node) if node.op_type in _TO_BITS else self._to_floats(node)

    def _packed(self, node: NodeProto, x: str, limits: np.ndarray, *, strict: bool) -> list[NodeProto]:
        bits, places = node.output[0], self._ranks[node.output[0]] - 2
        limit = self._store(node, "limits", limits.astype(np.float32).reshape(-1, *[1] * places))
        is_plus = self._names(f"{node.name}.is_plus")
        made = [self._node("Greater" if strict else "GreaterOrEqual", [x, limit], is_plus)]
        for low in sorted(self._lows[bits]):
            self._floats[bits, low] = self._names(f"{bits}.floats")
            values = [self._store(node, name, np.float32(value)) for name, value in (("plus", 1), ("low", low))]
            made.append(self._node("Where", [is_plus, *values], self._floats[bits, low]))
        return made

    def _pooled(self, node: NodeProto) -> list[NodeProto]:
        bits, made = node.output[0], []
        for low in sorted(self._lows[bits]):
            self._floats[bits, low] = self._names(f"{bits}.floats")
            made.append(self._node("MaxPool", [self._floats[node.input[0], low]], self._floats[bits, low]))
            made[-1].attribute.extend(node.attribute)
        return made

    def _to_floats(self, node: NodeProto) -> list[NodeProto]:
        sums = self._names(f"{node.output[0]}.sums")
        made = self._sums(node, sums)
        places = [1] * (2 if node.op_type in _CONVOLVE else 0)
        multiplier, bias, activation = (self._array(node, i) for i in (2, 3, 4))
        shift, slope, offset = activation
        steps: list[tuple[str, np.ndarray]] = [("Mul", multiplier)] if (multiplier != 1).any() else []
        steps += [("Add", bias)] if bias.any() else []
        if shift.any() or (slope != 1).any() or offset.any():
            steps += [("Sub", shift)] if shift.any() else []
            steps += [("PRelu", slope)] if slope.any() else [("Relu", slope)]
            steps += [("Add", offset)] if offset.any() else []
        for kind, array in steps:
            further = [] if kind == "Relu" else [self._store(node, kind.lower(), array.reshape(-1, *places))]
            made.append(self._node(kind, [made[-1].output[0], *further], self._names(f"{node.name}.{kind.lower()}")))
        made[-1].output[0] = node.output[0]
        return made

    def _to_bits(self, node: NodeProto) -> list[NodeProto]:
        sums = self._names(f"{node.name}.sums")
        thresholds = self._array(node, 2).astype(np.int64)
        flips = unpack_bits(self._array(node, 3), len(thresholds))
        limits = np.where(flips, 1 - thresholds, thresholds)
        return [*self._sums(node, sums, flips), *self._packed(node, sums, limits, strict=False)]

    def _sums(self, node: NodeProto, output: str, flips: np.ndarray | None = None) -> list[NodeProto]:
        """The whole numbers of a layer, of the other sign where `flips` are set."""
        channels, low = attribute_of(node, "channels"), attribute_of(node, "low")
        depth = channels // (attribute_of(node, "group") or 1)
        negative = unpack_bits(self._array(node, _WEIGHTS), depth)
        if flips is not None:
            negative = negative ^ flips.reshape(-1, *[1] * (negative.ndim - 1))
        signs = np.where(np.moveaxis(negative, -1, 1), np.float32(-1), np.float32(1))
        x = self._floats[node.input[0], low]
        if node.op_type in _MULTIPLY:
            product = self._node("Gemm", [x, self._store(node, "signs", signs)], output, node.name)
            product.attribute.append(helper.make_attribute("transB", 1))
            return [product]
        made, pads = [], attribute_of(node, "pads")
        if attribute_of(node, "pad_value") and any(pads):
            amounts = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            given = [x, self._store(node, "pads", amounts), self._store(node, "border", np.float32(1))]
            x, pads = self._names(f"{x}.padded"), [0, 0, 0, 0]
            made.append(self._node("Pad", given, x))
        conv = self._node("Conv", [x, self._store(node, "signs", signs)], output, node.name)
        kept = {name: attribute_of(node, name) for name in ("group", "strides", "dilations")}
        conv.attribute.extend(helper.make_attribute(name, value) for name, value in {**kept, "pads": pads}.items())
        return [*made, conv]

    def _array(self, node: NodeProto, index: int) -> np.ndarray:
        return numpy_helper.to_array(self._stored[node.input[index]])

    def _store(self, node: NodeProto, name: str, array: np.ndarray | np.floating) -> str:
        free = self._names(f"{node.name}.{name}")
        self._graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), free)
        )
        return free

    def _node(self, kind: str, inputs: list[str], output: str, name: str = "") -> NodeProto:
        return helper.make_node(kind, inputs, [output], name=name or self._names(f"{output}.node"))


def _needs(nodes: Iterable[NodeProto]) -> tuple[dict[str, set[int]], dict[str, int]]:
    """Of bits, what a set one stands for where they are read, and the rank of their floats."""
    lows, ranks = defaultdict[str, set[int]](set), dict[str, int]()
    for node in reversed([node for node in nodes if node.domain == DOMAIN]):
        if node.op_type == "BinaryMaxPool":
            lows[node.input[0]] |= lows[node.output[0]]
        elif node.op_type != "BinaryPack":
            lows[node.input[0]].add(attribute_of(node, "low"))
        ranks[node.input[0]] = 2 if node.op_type in _MULTIPLY else 4
    return lows, ranks


def _drop(model: ModelProto) -> None:
    """What the operators alone had: functions, the domain, packed weights, types of bits."""
    kept = [one for one in model.functions if one.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    read = read_anywhere(model.graph)
    stored = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    made = {name for node in model.graph.node for name in node.output}
    for graph in all_graphs(model.graph):
        infos = [v for v in graph.value_info if v.name in made or v.type.tensor_type.elem_type != TensorProto.INT32]
        del graph.value_info[:]
        graph.value_info.extend(infos)
