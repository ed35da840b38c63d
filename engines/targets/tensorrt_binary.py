"""Binary layers as TensorRT takes them: nodes that its parser turns into plugins, with weights laid out for the GPU.

Algebra   the operators of `engines.plugins.ops`; a layer's floats may leave it rounded to FP16, and BinaryPack compares
          FP16 as the FP32 numbers that they are: `Cast(FP16)` behind the one and `Cast(FP32)` before the other go into
          them, and nothing is rounded twice
Pattern   nodes of domain `bnn`
Check     everything but bits is stored; a layer's output is cast by its one reader alone
          bits that groups share a word of are packed of floats: dot or -dot, against thresholds of whole numbers
Rewrite   the same operators with the inputs of `engines.plugins.gpu.operators`, and the attributes by which the parser
          finds a plugin; functions are taken away, for the parser would write them out
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.graphs import copy_of, reads_of
from engines.passes.binary_lowered import lowered
from engines.passes.half_slots import attribute_of, value_types
from engines.passes.names import FreeNames
from engines.plugins.cuda.cubins import SMS_WITH_BITS
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.gpu.operators import NAMESPACE, VERSION
from engines.plugins.ops import DOMAIN, WORD, plain_activation, unpack_bits, words_of

__all__ = ["Lowering", "has_binary_layers", "lowerings", "with_plugins"]

_FLOATS = ("BinaryConv2d", "BinaryGemm")
_BITS = ("BinaryThreshold2d", "BinaryThreshold")
_WEIGHTS = 1
_BEYOND = 2**24 + 2
"""No sum of a layer's is as large, and FP32 holds it."""
_FP8_SMS = frozenset({103, 107})
"""Their INT8 units are slower than one by a factor of 20: 0.15 against 4.5 POPS (B300, B200)."""


def has_binary_layers(model: ModelProto) -> bool:
    """Whether any node of the top graph is one of `engines.plugins.ops`."""
    return any(node.domain == DOMAIN for node in model.graph.node)


class Lowering(NamedTuple):
    """A graph for some GPUs of those that are asked for. `said` is what became of its binary layers, if there are any:
    `plugins` counts them by operator, `weight_bytes` is what their weights take.
    """

    sms: tuple[int, ...]
    graph: ModelProto
    said: str = ""
    plugins: Mapping[str, int] = MappingProxyType({})
    weight_bytes: int = 0

    @property
    def has_plugins(self) -> bool:
        return bool(self.plugins)


def lowerings(model: ModelProto, sms: tuple[int, ...]) -> list[Lowering]:
    """The graphs of a model for these GPUs: one for all, but that those without units for bits have another where there
    are binary layers.

    Raises ModelRefused where there is none.
    """
    if not has_binary_layers(model):
        return [Lowering(sms, model)]
    with_bits = tuple(sm for sm in sms if sm in SMS_WITH_BITS)
    others = tuple(sm for sm in sms if sm not in SMS_WITH_BITS)
    found = [_on_bits(model, with_bits)] if with_bits else []
    return [*found, *([_on_bytes(model, others)] if others else [])]


def _on_bits(model: ModelProto, sms: tuple[int, ...]) -> Lowering:
    graph = with_plugins(model)
    plugins = Counter(node.op_type for node in graph.graph.node if node.domain == DOMAIN)
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    layers = [node for node in graph.graph.node if node.domain == DOMAIN and node.op_type in _FLOATS + _BITS]
    weight_bytes = sum(4 * math.prod(stored[node.input[_WEIGHTS]].dims) for node in layers)
    return Lowering(sms, graph, "bits, by plugins", dict(sorted(plugins.items())), weight_bytes)


def _on_bytes(model: ModelProto, sms: tuple[int, ...]) -> Lowering:
    """FP8 where a GPU has hardly any units for INT8 (binary-layer weights are -1 and +1 in either, exactly)."""
    kind: Literal["INT8", "FP8"] = "FP8" if set(sms) <= _FP8_SMS else "INT8"
    written = lowered(model, kind)
    return Lowering(sms, written.model, f"{kind} convolutions, exact", {}, sum(written.stored_bytes.values()))


def with_plugins(model: ModelProto) -> ModelProto:
    """Raises ModelRefused where something that has to be stored is computed."""
    return _Writer(model).written()


class _Writer:
    def __init__(self, model: ModelProto) -> None:
        self._model = copy_of(model)
        graph = self._model.graph
        self._types = value_types(model)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in reads_of(node):
                self._readers.setdefault(name, []).append(node)
        self._results = {value.name for value in graph.output}
        self._free = FreeNames(graph)
        self._gone: set[str] = set()
        """Outputs of Casts that went into a layer."""

    def written(self) -> ModelProto:
        graph = self._model.graph
        split = [one for node in graph.node for one in self._split(node)]
        del graph.node[:]
        graph.node.extend(split)
        for node in graph.node:
            if node.domain == DOMAIN:
                self._write(node)
        nodes = [node for node in graph.node if not self._gone.intersection(node.output) or node.domain == DOMAIN]
        del graph.node[:]
        graph.node.extend(nodes)
        del self._model.functions[:]
        _drop_unread(self._model)
        return self._model

    def _split(self, node: NodeProto) -> list[NodeProto]:
        """A layer whose groups share words of bits, which no two blocks of a kernel can write: floats, then packed.

        -1 where dot < t, of flipped filters where dot >= t, so -dot < 1 - t. Numbers beyond every sum are cut to what
        FP32 holds.
        """
        group = attribute_of(node, "group") or 1
        if node.domain != DOMAIN or node.op_type != "BinaryThreshold2d" or group == 1:
            return [node]
        limits, flips = (self._array(node, name).astype(np.int64) for name in node.input[2:4])
        filters = len(limits)
        if filters // group % WORD == 0:
            return [node]
        flipped = unpack_bits(flips.astype(np.int32), filters)
        numbers = np.clip(np.where(flipped, 1 - limits, limits), -_BEYOND, _BEYOND).astype(np.float32)
        stored = {
            "multiplier": np.where(flipped, -1, 1).astype(np.float32), "bias": np.zeros(filters, np.float32),
            "activation": plain_activation(),
        }  # fmt: skip
        further = [self._keep(f"{node.name}.{name}", array) for name, array in stored.items()]
        floats = self._free(f"{node.name}.floats")
        layer = NodeProto()
        layer.CopyFrom(node)
        layer.op_type, layer.name = "BinaryConv2d", floats
        del layer.input[2:], layer.output[:]
        layer.input.extend(further)
        layer.output.append(floats)
        limit = self._keep(f"{node.name}.numbers", numbers)
        pack = helper.make_node("BinaryPack", [floats, limit], node.output, node.name, domain=DOMAIN, strict=0)
        return [layer, pack]

    def _write(self, node: NodeProto) -> None:
        write: Callable[[NodeProto], None] = {
            "BinaryPack": self._pack, **dict.fromkeys(_FLOATS, self._floats), **dict.fromkeys(_BITS, self._layer),
        }.get(node.op_type, lambda node: None)  # fmt: skip
        write(node)
        node.attribute.extend(
            [
                helper.make_attribute("plugin_namespace", NAMESPACE),
                helper.make_attribute("plugin_version", VERSION),
            ]
        )

    def _pack(self, node: NodeProto) -> None:
        cast = self._makers.get(node.input[0])
        if (
            cast is not None
            and _is_cast(cast, TensorProto.FLOAT)
            and self._types.get(cast.input[0]) == TensorProto.FLOAT16
        ):
            node.input[0] = cast.input[0]

    def _floats(self, node: NodeProto) -> None:
        self._layer(node)
        readers = self._readers.get(node.output[0], [])
        is_half = (
            len(readers) == 1 and node.output[0] not in self._results and _is_cast(readers[0], TensorProto.FLOAT16)
        )
        node.attribute.append(helper.make_attribute("half", int(is_half)))
        if is_half:
            node.output[0] = readers[0].output[0]
            self._gone.add(node.output[0])

    def _layer(self, node: NodeProto) -> None:
        """Weights and sums in the layout of the kernels, and the size of the kernel, which that does not tell."""
        weights = self._array(node, node.input[_WEIGHTS])
        channels, group = attribute_of(node, "channels"), attribute_of(node, "group") or 1
        if weights.ndim == 2:
            weights = weights[:, None, None]
        else:
            node.attribute.append(helper.make_attribute("kernel_shape", weights.shape[1:3]))
        depth = channels // group
        if weights.shape[-1] != words_of(depth) or depth < 1 or (group > 1 and depth % WORD):
            raise ModelRefused(f"{node.name}: its weights are not those of {channels} channels in {group} groups")
        node.input[_WEIGHTS] = self._keep(f"{node.name}.gpu_weights", gpu_weights(weights, group))
        node.input.insert(_WEIGHTS + 1, self._keep(f"{node.name}.gpu_sums", gpu_sums(weights, depth)))

    def _array(self, node: NodeProto, name: str) -> np.ndarray:
        if name not in self._stored:
            raise ModelRefused(f"{node.name}: its weights {name!r} are computed; a plugin has to have them stored")
        found: np.ndarray = numpy_helper.to_array(self._stored[name])
        return found

    def _keep(self, name: str, array: np.ndarray) -> str:
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), self._free(name))
        self._model.graph.initializer.append(tensor)
        self._stored[tensor.name] = tensor
        return tensor.name


def _is_cast(node: NodeProto, kind: int) -> bool:
    return not node.domain and node.op_type == "Cast" and attribute_of(node, "to") == kind


def _drop_unread(model: ModelProto) -> None:
    """Casts that nobody reads any more, weights in the file's layout, and what was said of the types of both."""
    graph = model.graph
    while True:
        read = Counter(name for node in graph.node for name in reads_of(node))
        read.update(value.name for value in graph.output)
        unread = [node for node in graph.node if node.op_type == "Cast" and not any(read[name] for name in node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    stored = [tensor for tensor in graph.initializer if read[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    del graph.value_info[:]
