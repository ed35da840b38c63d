"""What the rules of convolutions and products share: packing signs, once for all that read them, and the layer itself.

Sign(x), which is 0 at 0, is half the sum of the signs of x >= 0 and of x > 0: two layers of the same weights with half
the factor, and their sum, exact while sums are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult

from engines.passes.binary_find import BinaryLayer
from engines.passes.binary_rules import BinaryRule, Layers, maker_of
from engines.plugins.ops import DOMAIN, pack_bits, plain_activation

__all__ = ["Found", "LayerRule"]


class Found:
    """The layers that were found, by what they give, and the bits that were packed for some of them already."""

    def __init__(self, layers: Iterable[BinaryLayer]) -> None:
        self.by_output = {layer.node.output[0]: layer for layer in layers}
        self.packed: dict[tuple[object, ...], ir.Value] = {}


class LayerRule(BinaryRule):
    """A layer of floats, of the operator `op_type`, becomes one of bits, of the operator `kind`."""

    op_type = ""
    kind = ""

    def __init__(self, layers: Layers, left: dict[str, str], found: Found) -> None:
        super().__init__(layers, left, name=f"{self.op_type} on bits")
        self._found = found

    def pattern(self, op: Any, data: ir.Value) -> Any:
        return getattr(op, self.op_type)(data, _allow_other_inputs=True, _outputs=["y"])

    def check(self, context: Any, data: ir.Value, y: ir.Value) -> MatchResult:
        return MatchResult() if str(y.name) in self._found.by_output else self.refuse(None, "it is no binary layer")

    def rewrite(self, op: Any, data: ir.Value, y: ir.Value) -> ir.Value:
        layer = self._found.by_output[str(y.name)]
        name, signs = layer.node.name, layer.signs
        weights = self.store(op, f"{name}.weights", pack_bits(np.moveaxis(layer.weights, 1, -1)))
        activation = self.store(op, f"{name}.activation", plain_activation())
        multiplier, bias = layer.scale * np.float32(signs.factor), layer.bias.astype(np.float32)

        def made(called: str, multiplier: np.ndarray, bias: np.ndarray, *, strict: bool) -> ir.Value:
            numbers = {"multiplier": multiplier.astype(np.float32), "bias": bias}
            stored = [self.store(op, f"{called}.{what}", array) for what, array in numbers.items()]
            reads = [self._bits(op, layer, data, strict=strict), weights, *stored, activation]
            return self.call(getattr(op, self.kind)(*reads, _domain=DOMAIN, **layer.attributes.values()), called)

        if not signs.ternary:
            return made(name, multiplier, bias, strict=signs.strict)
        at_least = made(name, multiplier / 2, bias, strict=False)
        above = made(self.layers.names(f"{name}.above"), multiplier / 2, np.zeros_like(bias), strict=True)
        return self.call(op.Add(at_least, above), self.layers.names(f"{name}.sum"))

    def _bits(self, op: Any, layer: BinaryLayer, data: ir.Value, *, strict: bool) -> ir.Value:
        """Bits that another layer has packed are read again."""
        signs = layer.signs
        limits = np.broadcast_to(signs.threshold.reshape(-1).astype(np.float32), layer.attributes.channels)
        key = (signs.source, tuple(move.output[0] for move in signs.moves), strict, limits.tobytes())
        if key not in self._found.packed:
            source = maker_of(data, signs.source)
            for move in signs.moves:
                node = maker_of(data, move.output[0]).producer()
                assert node is not None  # what moves signs is a node
                moved = getattr(op, node.op_type)(source, *node.inputs[1:], **dict(node.attributes))
                source = self.call(moved, self.layers.names(f"{move.name}.bits"))
            names = self.layers.names
            stored = self.store(op, f"{layer.node.name}.threshold", limits)
            packed = op.BinaryPack(source, stored, _domain=DOMAIN, strict=int(strict))
            self._found.packed[key] = self.call(packed, names(f"{signs.source}.packed"))
        return self._found.packed[key]
