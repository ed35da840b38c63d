"""Find the convolutions and products of signs with signs: they are marked first, and written in bits last.

Algebra   s = f * (x >= t ? 1 : -1), w = a[o] * b with b of -1 and +1: conv(s, w) + c = f * a[o] * dot + c, dot a whole
          number
Pattern   Conv, Gemm or MatMul whose data `binary_signs` knows, and whose stored weights have one magnitude a filter
Check     two dimensions, groups of whole words; values before it are padded with 0, or with f by a Pad of its own,
          which then is the layer's. What is refused is told with its reason
Rewrite   none here: quantization leaves what is found as it is, `binary_layers` replaces it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from engines.passes.binary_expressions import Sums, is_never_zero, root_of
from engines.passes.binary_signs import NotBinary, Signs, signs_of
from engines.passes.binary_wiring import Wiring
from engines.passes.half_slots import attribute_of
from engines.plugins.ops import WORD, ConvAttributes, GemmAttributes

__all__ = ["BinaryLayer", "find_binary_layers", "sums_of"]

_LARGEST_SUM = 2**24
"""Whole numbers up to it are exact in FP32."""


class BinaryLayer(NamedTuple):
    """A layer that can be computed on bits. `weights`: BOOL [filters, channels of a group, kernel height, kernel width]
    or, of a product, [filters, channels], True where negative; `scale` has their magnitudes.
    """

    node: NodeProto
    signs: Signs
    weights: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    attributes: ConvAttributes | GemmAttributes


def find_binary_layers(model: ModelProto) -> tuple[list[BinaryLayer], dict[str, str]]:
    """All in the top graph, and those that nearly are, by name, with the reason why not."""
    graph = model.graph
    wiring = Wiring(model)
    found, refused = dict[str, BinaryLayer](), dict[str, str]()
    for node in graph.node:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            continue
        try:
            found[node.output[0]] = _settled(rule(node, wiring), wiring, found)
        except NotBinary as reason:
            if str(reason):
                refused[node.name or node.output[0]] = str(reason)
    return list(found.values()), refused


def _settled(layer: BinaryLayer, wiring: Wiring, found: Mapping[str, BinaryLayer]) -> BinaryLayer:
    """A Sign of the sums of an earlier layer that are never 0 has two values alone; others take two planes of bits."""
    signs = layer.signs
    if not signs.ternary:
        return layer
    made_by = found.get(root_of(signs.source, wiring))
    if made_by is not None and is_never_zero(signs.source, sums_of(made_by), wiring):
        return layer._replace(signs=signs._replace(ternary=False))
    return layer


def sums_of(layer: BinaryLayer) -> Sums:
    """What is known of a layer's output."""
    own = layer.attributes
    leaves_out = isinstance(own, ConvAttributes) and own.pad_value == 0 and any(own.pads)
    return Sums(
        name=layer.node.output[0], terms=layer.weights[0].size, multiplier=layer.scale * np.float32(layer.signs.factor),
        bias=layer.bias, rank=4 if layer.node.op_type == "Conv" else 2,
        has_all_terms=layer.signs.low == -1 and not layer.signs.ternary and not leaves_out,
    )  # fmt: skip


def _conv(node: NodeProto, wiring: Wiring) -> BinaryLayer:
    weights = wiring.constant(node.input[1])
    if weights is None or weights.ndim != 4:
        raise NotBinary("")
    scale = _magnitudes(weights)
    padded = _padded(node.input[0], wiring)
    signs = signs_of(padded.source, wiring, padded.moves)
    pads, pad_value = _pads(node, weights, wiring), padded.value
    if padded.amounts is not None:
        if any(pads):
            raise NotBinary("it is padded twice")
        pads = padded.amounts
    if pad_value not in (0, signs.factor):
        raise NotBinary(f"it is padded with {pad_value:g}, and its values are {signs.factor:g} and {-signs.factor:g}")
    group = attribute_of(node, "group") or 1
    if group > 1 and weights.shape[1] % WORD:
        raise NotBinary(f"it has groups of {weights.shape[1]} channels; expected a multiple of {WORD}")
    bias = wiring.constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weights), np.float32)
    if bias is None:
        raise NotBinary("its bias is computed")
    top, left, bottom, right = pads
    (sy, sx), (dy, dx) = attribute_of(node, "strides") or (1, 1), attribute_of(node, "dilations") or (1, 1)
    attributes = ConvAttributes(
        channels=weights.shape[1] * group, group=group, strides=(sy, sx), dilations=(dy, dx),
        pads=(top, left, bottom, right), pad_value=1 if pad_value else 0,
        low=signs.low,
    )  # fmt: skip
    return _checked(BinaryLayer(node, signs, weights < 0, scale, bias, attributes))


class _Padded(NamedTuple):
    """What a Pad reads, its four numbers and its value, and the Transpose behind it; without one, the value itself."""

    source: str
    moves: tuple[NodeProto, ...] = ()
    amounts: list[int] | None = None
    value: float = 0.0


def _padded(name: str, wiring: Wiring) -> _Padded:
    node, moves = wiring.maker.get(name), tuple[NodeProto, ...]()
    if node is not None and node.op_type == "Transpose":  # channels were last
        moves = (node,)
        node = wiring.maker.get(node.input[0])
    if node is None or node.op_type != "Pad":
        return _Padded(name)
    amounts = wiring.constant(node.input[1])
    value = wiring.scalar(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
    is_plain = attribute_of(node, "mode") in (None, b"constant") and len(node.input) <= 3
    if amounts is None or value is None or not is_plain or amounts.size != 8 or (amounts < 0).any():
        raise NotBinary("")
    axes = list(moves[0].attribute[0].ints) if moves and moves[0].attribute else [0, 1, 2, 3]
    if moves and not moves[0].attribute:
        axes.reverse()
    (n0, c0, top, left), (n1, c1, bottom, right) = amounts.reshape(2, 4)[:, axes].tolist()
    if n0 or c0 or n1 or c1:
        raise NotBinary("")
    return _Padded(node.input[0], moves, [top, left, bottom, right], value)


def _pads(node: NodeProto, weights: np.ndarray, wiring: Wiring) -> list[int]:
    """Top, left, bottom, right, as given or as they follow from sizes. Raises NotBinary where those are not known."""
    automatic = attribute_of(node, "auto_pad")
    if automatic not in (b"SAME_UPPER", b"SAME_LOWER"):
        return list(attribute_of(node, "pads") or [0, 0, 0, 0]) if automatic != b"VALID" else [0, 0, 0, 0]
    sizes = (wiring.shape(node.input[0]) or ())[2:] or (-1, -1)
    strides, dilations = (attribute_of(node, name) or [1, 1] for name in ("strides", "dilations"))
    missing = []
    for size, kernel, stride, dilation in zip(sizes, weights.shape[2:], strides, dilations, strict=True):
        if size < 1 and stride > 1:
            raise NotBinary("its padding follows from its input's size, which is not known")
        outputs = -(-size // stride) if stride > 1 else size
        missing.append(max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0))
    less, more = [amount // 2 for amount in missing], [amount - amount // 2 for amount in missing]
    return [*less, *more] if automatic == b"SAME_UPPER" else [*more, *less]


def _gemm(node: NodeProto, wiring: Wiring) -> BinaryLayer:
    stored = wiring.constant(node.input[1])
    if stored is None or stored.ndim != 2 or attribute_of(node, "transA"):
        raise NotBinary("")
    rows = stored if attribute_of(node, "transB") else stored.T
    scale = _magnitudes(rows)
    bias = wiring.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
    if bias is None or bias.ndim > 1 or attribute_of(node, "alpha") not in (None, 1.0):
        raise NotBinary("its bias is computed, or it has a factor of its own")
    if attribute_of(node, "beta") not in (None, 1.0):
        raise NotBinary("it has a factor of its own")
    return _product(node, rows, scale, np.broadcast_to(bias, len(rows)).copy(), wiring)


def _matmul(node: NodeProto, wiring: Wiring) -> BinaryLayer:
    stored = wiring.constant(node.input[1])
    if stored is None or stored.ndim != 2:
        raise NotBinary("")
    scale = _magnitudes(stored.T)
    signs_of(node.input[0], wiring)  # first: of what is no sign, nobody wants to know the rank
    if wiring.rank(node.input[0]) != 2:
        raise NotBinary("its data has another rank than 2, or one that is not known")
    return _product(node, stored.T, scale, np.zeros(stored.shape[1], np.float32), wiring)


def _product(node: NodeProto, rows: np.ndarray, scale: np.ndarray, bias: np.ndarray, wiring: Wiring) -> BinaryLayer:
    signs = signs_of(node.input[0], wiring)
    attributes = GemmAttributes(channels=rows.shape[1], low=signs.low)
    return _checked(BinaryLayer(node, signs, rows < 0, scale, bias, attributes))


def _checked(layer: BinaryLayer) -> BinaryLayer:
    if layer.weights[0].size > _LARGEST_SUM:
        raise NotBinary(f"sums of {layer.weights[0].size} signs are not exact in FP32")
    threshold, channels = layer.signs.threshold, layer.attributes.channels
    if threshold.size > 1:
        per_channel = threshold.reshape(-1) if threshold.size == channels else None
        behind = 2 if isinstance(layer.attributes, ConvAttributes) else 0
        is_first = threshold.ndim in (behind + 1, behind + 2) and threshold.shape[-behind - 1] == channels
        stay = all(move.op_type == "MaxPool" for move in layer.signs.moves)
        if per_channel is None or not is_first or not stay:
            raise NotBinary("its threshold is not one number a channel")
    return layer


def _magnitudes(weights: np.ndarray) -> np.ndarray:
    """One a filter. Raises NotBinary where a filter has several, or 0."""
    magnitudes = np.abs(weights.reshape(len(weights), -1))
    scale: np.ndarray = magnitudes[:, :1]
    if weights.dtype != np.float32 or not magnitudes.size or (magnitudes != scale).any() or not (scale > 0).all():
        raise NotBinary("")
    return scale[:, 0]


_RULES = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}
