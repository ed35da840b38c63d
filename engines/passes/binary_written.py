"""Write `bnn` operators in ONNX's own, one after another: what all forms of them have in common.

Algebra   bits are Where(x >= t, 1, low), a layer is a convolution or product of them with weights of -1 and +1; where a
          threshold is flipped, (d < t) != 1 is not (-d >= 1 - t): weights of the other sign, and 1 - t
Pattern   operators of domain `bnn`
Check     `obstacle_of`: bits are read by such operators alone, and all else that they read is stored
Rewrite   a form says how data, weights and what follows the sums are written (`binary_floats`, `binary_lowered`)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.graphs import all_graphs, all_nodes, read_anywhere, reads_of
from engines.passes.half_slots import attribute_of
from engines.passes.names import FreeNames
from engines.plugins.ops import DOMAIN, unpack_bits

__all__ = ["CONVOLVE", "LAYERS", "WEIGHTS", "Writer", "obstacle_of", "rewritten"]

CONVOLVE = frozenset({"BinaryConv2d", "BinaryThreshold2d"})
_MULTIPLY = frozenset({"BinaryGemm", "BinaryThreshold"})
LAYERS = CONVOLVE | _MULTIPLY
"""Those with weights."""
_TO_BITS = frozenset({"BinaryPack", "BinaryThreshold2d", "BinaryThreshold", "BinaryMaxPool"})
WEIGHTS = 1
"""Position among the inputs."""
_STORED_FROM = 1
"""All inputs of an operator but the first are stored."""


def obstacle_of(model: ModelProto, known: Iterable[FunctionProto]) -> str:
    """Why the operators of a model cannot be written otherwise; nothing where they can. `known` are those that have a
    meaning here.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    if len(nodes) < sum(node.domain == DOMAIN for node in all_nodes(model.graph)):
        return "some are in the bodies of others"
    if not {node.op_type for node in nodes} <= {one.name for one in known}:
        return "some are not known here"
    stored = {tensor.name for tensor in model.graph.initializer}
    if any(name not in stored for node in nodes for name in node.input[_STORED_FROM:]):
        return "some have weights that are computed"
    made = {node.output[0] for node in nodes if node.op_type in _TO_BITS}
    bits = {node.input[0] for node in nodes if node.op_type != "BinaryPack"}
    others = {name for node in model.graph.node if node.domain != DOMAIN for name in reads_of(node)}
    packs = {node.input[0] for node in nodes if node.op_type == "BinaryPack"}
    if not bits <= made or made & (others | packs | {value.name for value in model.graph.output}):
        return "bits come from others, or go there"
    return ""


class Writer(ABC):
    """Writes one operator after another. `model` is changed: its graph gets the weights."""

    def __init__(self, model: ModelProto) -> None:
        self._graph, self.layers = model.graph, 0
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = FreeNames(model.graph)
        self._lows, self._ranks = _needs(model.graph.node)
        self._floats: dict[tuple[str, int], str] = {}

    @abstractmethod
    def data(self, x: str) -> tuple[list[NodeProto], str]:
        """What a layer reads of floats FP32 of -1, 0 and +1, by name, and the nodes that make it."""

    @abstractmethod
    def signs(self, layer: NodeProto, negative: np.ndarray) -> tuple[list[NodeProto], str]:
        """Weights BOOL [filters, channels, kernel...], stored: what the layer reads, and the nodes that make it."""

    @abstractmethod
    def finished(self, layer: NodeProto, sums: str) -> list[NodeProto]:
        """What follows the sums, FP32 [rows, filters, places...], as the layer has it; none where nothing does."""

    def of(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for it."""
        if node.op_type == "BinaryPack":
            return self._packed(node, node.input[0], self.array(node, 1), strict=bool(attribute_of(node, "strict")))
        if node.op_type == "BinaryMaxPool":
            return self._pooled(node)
        self.layers += 1
        return self._to_bits(node) if node.op_type in _TO_BITS else self._to_floats(node)

    def terms(self, layer: NodeProto) -> int:
        """How many signs are in one sum."""
        places = int(np.prod(self._stored[layer.input[WEIGHTS]].dims[1:-1]))
        return int(attribute_of(layer, "channels") // (attribute_of(layer, "group") or 1)) * places

    def array(self, node: NodeProto, index: int) -> np.ndarray:
        """What it has stored as one of its inputs."""
        return numpy_helper.to_array(self._stored[node.input[index]])

    def store(self, node: NodeProto, name: str, array: np.ndarray | np.floating) -> str:
        """The name under which it is stored, which begins with the node's."""
        plain = np.ascontiguousarray(array).reshape(np.shape(array))
        return self.keep(node, name, numpy_helper.from_array(plain))

    def keep(self, node: NodeProto, name: str, tensor: TensorProto) -> str:
        """The same of a tensor."""
        tensor.name = self._names(f"{node.name}.{name}")
        self._graph.initializer.append(tensor)
        return tensor.name

    def per_filter(self, layer: NodeProto, name: str, array: np.ndarray) -> str:
        """[filters or 1], stored in a shape that goes with the layer's sums."""
        return self.store(layer, name, array.reshape(-1, *[1] * (2 if layer.op_type in CONVOLVE else 0)))

    def value(self, wanted: str) -> str:
        """A name that nothing has."""
        return self._names(wanted)

    def node(self, kind: str, inputs: list[str], output: str, name: str = "") -> NodeProto:
        """With a name of its own."""
        return helper.make_node(kind, inputs, [output], name=name or self._names(f"{output}.node"))

    def _packed(self, node: NodeProto, x: str, limits: np.ndarray, *, strict: bool) -> list[NodeProto]:
        bits, places = node.output[0], self._ranks.get(node.output[0], 4) - 2
        limit = self.store(node, "limits", limits.astype(np.float32).reshape(-1, *[1] * places))
        is_plus = self._names(f"{node.name}.is_plus")
        made = [self.node("Greater" if strict else "GreaterOrEqual", [x, limit], is_plus)]
        for low in sorted(self._lows[bits]):
            self._floats[bits, low] = self._names(f"{bits}.floats")
            values = [self.store(node, name, np.float32(value)) for name, value in (("plus", 1), ("low", low))]
            made.append(self.node("Where", [is_plus, *values], self._floats[bits, low]))
        return made

    def _pooled(self, node: NodeProto) -> list[NodeProto]:
        bits, made = node.output[0], []
        for low in sorted(self._lows[bits]):
            self._floats[bits, low] = self._names(f"{bits}.floats")
            made.append(self.node("MaxPool", [self._floats[node.input[0], low]], self._floats[bits, low]))
            made[-1].attribute.extend(node.attribute)
        return made

    def _to_floats(self, node: NodeProto) -> list[NodeProto]:
        sums = self._names(f"{node.output[0]}.sums")
        made = self._sums(node, sums)
        made += self.finished(node, sums)
        made[-1].output[0] = node.output[0]
        return made

    def _to_bits(self, node: NodeProto) -> list[NodeProto]:
        sums = self._names(f"{node.name}.sums")
        thresholds = self.array(node, 2).astype(np.int64)
        flips = unpack_bits(self.array(node, 3), len(thresholds))
        most = self.terms(node)
        # no sum lies beyond, and FP32 holds the next whole number that does
        limits = np.clip(np.where(flips, 1 - thresholds, thresholds), -most, most + 1)
        return [*self._sums(node, sums, flips), *self._packed(node, sums, limits, strict=False)]

    def _sums(self, node: NodeProto, output: str, flips: np.ndarray | None = None) -> list[NodeProto]:
        """The whole numbers of a layer, of the other sign where `flips` are set."""
        channels, low = attribute_of(node, "channels"), attribute_of(node, "low")
        depth = channels // (attribute_of(node, "group") or 1)
        negative = unpack_bits(self.array(node, WEIGHTS), depth)
        if flips is not None:
            negative = negative ^ flips.reshape(-1, *[1] * (negative.ndim - 1))
        made, pads = [], attribute_of(node, "pads")
        x = self._floats[node.input[0], low]
        if attribute_of(node, "pad_value") and any(pads):
            amounts = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            given = [x, self.store(node, "pads", amounts), self.store(node, "border", np.float32(1))]
            x, pads = self._names(f"{x}.padded"), [0, 0, 0, 0]
            made.append(self.node("Pad", given, x))
        data, x = self.data(x)
        stored, w = self.signs(node, np.moveaxis(negative, -1, 1))
        layer = self.node("Conv" if node.op_type in CONVOLVE else "Gemm", [x, w], output, node.name)
        if node.op_type in CONVOLVE:
            kept = {name: attribute_of(node, name) for name in ("group", "strides", "dilations")}
            layer.attribute.extend(helper.make_attribute(name, value) for name, value in {**kept, "pads": pads}.items())
        else:
            layer.attribute.append(helper.make_attribute("transB", 1))
        return [*made, *data, *stored, layer]


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


def rewritten(model: ModelProto, writer: Writer) -> None:
    """Its operators, in place, as the writer has them; functions, packed weights and types of bits go with them."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(writer.of(node) if node.domain == DOMAIN else [node])
    _drop(model)


def _drop(model: ModelProto) -> None:
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
