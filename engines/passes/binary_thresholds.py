"""Keep bits between two binary layers: signs of a layer's sums are told by whole numbers, and no floats are written.

Algebra   y = d * m + c, d a whole number from -K to K, m and c FP32, each operation rounded. Rounding is monotone, so
          the sign of y against t changes once as d rises: bit = (d < threshold), or its opposite where m is negative.
          The threshold is found by evaluating y as it is computed, at each of these numbers, and not by algebra: ties
          at t fall as they fall in floats
Pattern   BinaryPack(BinaryConv2d(...), t) or BinaryPack(BinaryGemm(...), t), the sum read by that alone
Check     one group, or groups of whole words; an activation may fall, which is seen in the values
Rewrite   BinaryThreshold2d or BinaryThreshold with the layer's name and weights
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from engines.graphs import reads_of
from engines.passes.half_slots import attribute_of
from engines.passes.names import FreeNames
from engines.plugins.ops import DOMAIN, WORD, pack_bits
from engines.plugins.reference import finished

__all__ = ["fuse_thresholds", "thresholds_of"]

_TO_BITS = {"BinaryConv2d": "BinaryThreshold2d", "BinaryGemm": "BinaryThreshold"}


def fuse_thresholds(model: ModelProto) -> None:
    """In place: every pair that can be becomes one operator. What nobody reads any more stays."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    reads = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        reads.update(reads_of(node).difference(node.input))  # what bodies read
    reads.update(value.name for value in graph.output)
    made = {node.output[0]: node for node in graph.node if node.domain == DOMAIN and node.op_type in _TO_BITS}
    names, fused = FreeNames(graph), dict[str, NodeProto]()
    for pack in graph.node:
        layer = made.get(pack.input[0]) if pack.domain == DOMAIN and pack.op_type == "BinaryPack" else None
        if layer is None or reads[layer.output[0]] != 1:
            continue
        weights, multiplier, bias, activation, limits = (
            numpy_helper.to_array(stored[name]) for name in (*layer.input[1:5], pack.input[1])
        )
        group = attribute_of(layer, "group") or 1
        if group > 1 and len(weights) // group % WORD:
            continue
        sums = attribute_of(layer, "channels") // group * math.prod(weights.shape[1:-1])
        told = thresholds_of(multiplier, bias, activation, limits, sums, strict=bool(attribute_of(pack, "strict")))
        if told is None:
            continue
        found, flips = told
        inputs = [*layer.input[:2]]
        for name, array in (("thresholds", found), ("flips", pack_bits(flips))):
            inputs.append(names(f"{layer.name}.{name}"))
            graph.initializer.append(numpy_helper.from_array(array, inputs[-1]))
        node = helper.make_node(_TO_BITS[layer.op_type], inputs, [pack.output[0]], name=layer.name, domain=DOMAIN)
        node.attribute.extend(layer.attribute)
        fused[pack.output[0]] = node
    nodes = [fused.get(node.output[0], node) for node in graph.node]
    gone = {pack.input[0] for pack in graph.node if pack.output[0] in fused}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.output[0] not in gone)


def thresholds_of(
    multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray, limits: np.ndarray, sums: int, *, strict: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Thresholds INT32 [filters] and flips BOOL [filters]: a value is -1 where (d < threshold) != flip, for whole
    numbers d from -`sums` to `sums`. None where a sign changes more than once, as behind an activation that falls.
    """
    numbers = np.arange(-sums, sums + 1, dtype=np.int32)
    found, flips = np.empty(len(multiplier), np.int32), multiplier < 0
    bends = np.broadcast_to(activation, (3, len(multiplier)))
    for i, limit in enumerate(limits):
        one = slice(i, i + 1)
        values = finished(numbers[:, None], multiplier[one], bias[one], bends[:, one])[:, 0]
        positive = values > limit if strict else values >= limit
        changed = ~positive if flips[i] else positive  # False, then True
        found[i] = numbers[0] + np.searchsorted(changed, True)
        if (changed != (numbers >= found[i])).any():
            return None
    return found, flips
