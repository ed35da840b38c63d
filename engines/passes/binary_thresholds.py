"""Keep bits between two binary layers: signs of a layer's sums are told by whole numbers, and no floats are written.

Algebra   y = e(d), d a whole number from -K to K, e all that is computed of the sum before its sign: factor, bias,
          batch norm, activation. The sign of y against t is found by evaluating e as the model computes it, at each of
          these numbers, and not by algebra: ties at t fall as they fall in floats. Where it changes at most once as d
          rises, bit = (d < threshold), or its opposite where y falls.
          A MaxPool in between, y = h(max over a window of g(d)): where the sign of h rises with its argument, it is the
          largest of the window's signs, so the AND of their bits; where it falls, it is the smallest, and the channel
          is negated before the pool and in the weights of those that read it
Pattern   BinaryPack(e(BinaryConv2d(...)), t) or of BinaryGemm
Check     nobody else reads the sum, nor what is between; one number a channel; one group, or groups of whole words; a
          sign changes once. With a pool whose channels fall: all readers are layers of one group, not padded with 1
Rewrite   BinaryThreshold2d or BinaryThreshold with the layer's name and weights, and BinaryMaxPool with the pool's
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx import NodeProto
from onnxscript.rewriter import MatchResult

from engines.passes.binary_expressions import Expression, NotComputed, numbers_of, parts_of, root_of
from engines.passes.binary_pools import window_of
from engines.passes.binary_rules import BinaryRule, Layers, maker_of
from engines.passes.half_slots import attribute_of
from engines.plugins.ops import DOMAIN, WORD, pack_bits

__all__ = ["NoThreshold", "ThresholdRule", "Told", "thresholds_of"]

_TO_BITS = {"BinaryConv2d": "BinaryThreshold2d", "BinaryGemm": "BinaryThreshold"}
_READERS = frozenset({*_TO_BITS, *_TO_BITS.values()})
Told = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Whole numbers FP32 [numbers, filters] -> the values that a pool compares, and whether the last ones are positive."""


class _Plan(NamedTuple):
    layer: NodeProto
    pool: NodeProto | None
    thresholds: np.ndarray
    flips: np.ndarray
    falls: np.ndarray


class NoThreshold(Exception):
    """Says why the sum stays a sum; nothing where there is none."""


class ThresholdRule(BinaryRule):
    """BinaryPack of what follows from a layer's sums."""

    def __init__(self, layers: Layers, left: dict[str, str]) -> None:
        super().__init__(layers, left, name="thresholds")
        self._plans: dict[str, _Plan] = {}

    def pattern(self, op: Any, x: ir.Value, limits: ir.Value) -> Any:
        return op.BinaryPack(x, limits, _domain=DOMAIN, _outputs=["bits"])

    def check(self, context: Any, x: ir.Value, limits: ir.Value, bits: ir.Value) -> MatchResult:
        layer = self.layers.by_output.get(root_of(str(x.name), self.layers.wiring))
        pack = self.layers.wiring.maker.get(str(bits.name))
        if layer is None or pack is None:
            return self.refuse(None, "")
        try:
            plan = _plan(layer, pack, self.layers)
            _check_readers(plan, bits)
        except (NoThreshold, NotComputed) as reason:
            return self.refuse(layer.name, str(reason))
        self._plans[str(bits.name)] = plan
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, limits: ir.Value, bits: ir.Value) -> ir.Value:
        plan = self._plans[str(bits.name)]
        layer = maker_of(x, plan.layer.output[0]).producer()
        assert layer is not None  # it is a node's output
        told = [
            self.store(op, f"{layer.name}.{name}", array)
            for name, array in (("thresholds", plan.thresholds), ("flips", pack_bits(plan.flips)))
        ]
        found: ir.Value = getattr(op, _TO_BITS[layer.op_type])(
            *layer.inputs[:2], *told, _domain=DOMAIN, **dict(layer.attributes)
        )
        self.call(found, layer.name)
        if plan.pool is None:
            return found
        if plan.falls.any():
            self._negate(op, bits, plan.falls)
        pooled: ir.Value = op.BinaryMaxPool(found, _domain=DOMAIN, **window_of(plan.pool).values())
        return self.call(pooled, plan.pool.name)

    def _negate(self, op: Any, bits: ir.Value, channels: np.ndarray) -> None:
        """In the weights of all layers that read the bits."""
        for use in bits.uses():
            weights = use.node.inputs[1]
            assert weights is not None
            assert weights.const_value is not None
            words = weights.const_value.numpy() ^ pack_bits(channels)
            use.node.replace_input_with(1, self.store(op, str(weights.name), words))


def _plan(layer: NodeProto, pack: NodeProto, layers: Layers) -> _Plan:
    filters, rank = len(layers.array(layer.input[2])), 4 if layer.op_type == "BinaryConv2d" else 2
    group = attribute_of(layer, "group") or 1
    if group > 1 and filters // group % WORD:
        raise NoThreshold(f"it has groups of {filters // group} filters; expected a multiple of {WORD}")
    parts = parts_of(pack.input[0], layers.wiring, filters, rank)
    if parts is None or (parts[2] or parts[0]).root != layer.output[0]:
        raise NoThreshold("what is computed of its sums takes more than one number a channel")
    after, pool, before = parts
    _check_reads(layer, after, pool, before, layers)
    limits, is_strict = layers.array(pack.input[1]), bool(attribute_of(pack, "strict"))

    def told(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        compared = layers.values(layer, numbers)
        if before is not None:
            compared = before.of(compared)
        found = after.of(compared)
        return compared, found > limits if is_strict else found >= limits

    thresholds, flips, falls = thresholds_of(told, filters, layers.terms(layer))
    if (falls < 0).any() and pool is not None:
        raise NoThreshold("a sign behind its pool rises and falls with the pool's values")
    if pool is None:
        return _Plan(layer, None, thresholds, flips, np.zeros(filters, bool))
    try:
        window_of(pool)
    except ValueError as error:
        raise NoThreshold(f"its pool has {error}") from error
    return _Plan(layer, pool, thresholds, flips ^ (falls > 0), falls > 0)


def _check_reads(
    layer: NodeProto, after: Expression, pool: NodeProto | None, before: Expression | None, layers: Layers
) -> None:
    inner = [*after.nodes, *([pool] if pool is not None else []), *(before.nodes if before is not None else ())]
    own = {
        name: sum(list(node.input).count(name) for node in inner) for node in (layer, *inner) for name in node.output
    }
    own[after.output] += 1  # by the pack
    if any(layers.reads[name] > count for name, count in own.items()):
        raise NoThreshold("others read its sums, too")


def _check_readers(plan: _Plan, bits: ir.Value) -> None:
    if not plan.falls.any():
        return
    for use in bits.uses():
        attributes = use.node.attributes
        is_padded = attributes.get_int("pad_value", 0) and any(attributes.get_ints("pads", []))
        is_plain = attributes.get_int("group", 1) == 1 and attributes.get_int("low", -1) == -1 and not is_padded
        if use.node.domain != DOMAIN or use.node.op_type not in _READERS or use.idx or not is_plain:
            raise NoThreshold(f"a factor behind its pool is negative, and {use.node.name!r} takes no negated channel")
    if bits.is_graph_output():
        raise NoThreshold("a factor behind its pool is negative, and its bits are an output")


def thresholds_of(told: Told, filters: int, sums: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds INT32 [filters] and flips BOOL [filters]: a value is -1 where (d < threshold) != flip, for whole
    numbers d from -`sums` to `sums`; and INT8 [filters]: 1 where it falls as the compared value rises, -1 where it does
    both, else 0. Raises where a sign changes more than once as d rises, as behind an activation that falls.
    """
    first, last = np.zeros(0, bool), np.zeros(0, bool)
    changes = np.zeros(filters, np.int64)
    thresholds = np.full(filters, -sums, np.int64)
    least, most = np.full((2, filters), np.inf), np.full((2, filters), -np.inf)
    for numbers in numbers_of(sums, filters):
        compared, positive = told(numbers)
        if not first.size:
            first = last = positive[0]
        differs = np.diff(positive, axis=0, prepend=last[None])
        changes += differs.sum(axis=0)
        at = differs.argmax(axis=0)
        thresholds = np.where(differs.any(axis=0), numbers[at, np.arange(filters)].astype(np.int64), thresholds)
        last = positive[-1]
        for side, is_there in enumerate((~positive, positive)):
            least[side] = np.minimum(least[side], np.where(is_there, compared, np.inf).min(axis=0))
            most[side] = np.maximum(most[side], np.where(is_there, compared, -np.inf).max(axis=0))
    if (changes > 1).any():
        raise NoThreshold("the sign of what is computed of its sums changes more than once as they rise")
    thresholds[(changes == 0) & ~first] = sums + 1
    falls = np.where(most[0] < least[1], 0, np.where(most[1] < least[0], 1, -1))
    return thresholds.astype(np.int32), (changes == 1) & first, falls.astype(np.int8)
