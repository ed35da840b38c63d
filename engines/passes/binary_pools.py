"""Pool bits, where floats are pooled and packed: a bit is 32 times smaller.

Algebra   max(x over a window) >= t where one of the window's is: a bit, set below t, is set where all are. Which is
          true of > as well, and of every t that a channel has
Pattern   BinaryPack(MaxPool(x), t)
Check     nobody else reads what is pooled, it is a pool of two dimensions without indices, whose sizes do not follow
          from the input's, and no window lies in the padding alone
Rewrite   BinaryMaxPool(BinaryPack(x, t)) with the pool's name
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx import NodeProto
from onnxscript.rewriter import MatchResult

from engines.passes.binary_rules import BinaryRule, Layers
from engines.passes.half_slots import attribute_of
from engines.plugins.ops import DOMAIN, PoolAttributes

__all__ = ["PoolRule", "window_of"]


def window_of(pool: NodeProto) -> PoolAttributes:
    """What a MaxPool is as one of bits. Raises ValueError where it is none."""
    if len(pool.output) > 1:
        raise ValueError("indices")
    if attribute_of(pool, "ceil_mode") or attribute_of(pool, "auto_pad") not in (None, b"NOTSET", b"VALID"):
        raise ValueError("windows whose number follows from the input's size")
    kernel = attribute_of(pool, "kernel_shape")
    if len(kernel) != 2:
        raise ValueError(f"windows of {len(kernel)} dimensions")
    high, wide = kernel
    top, left, bottom, right = attribute_of(pool, "pads") or (0, 0, 0, 0)
    (sy, sx), (dy, dx) = attribute_of(pool, "strides") or (1, 1), attribute_of(pool, "dilations") or (1, 1)
    return PoolAttributes(
        kernel_shape=(high, wide), strides=(sy, sx), dilations=(dy, dx), pads=(top, left, bottom, right)
    )


class PoolRule(BinaryRule):
    """A MaxPool that is packed."""

    def __init__(self, layers: Layers, left: dict[str, str]) -> None:
        super().__init__(layers, left, name="pool of bits")
        self._windows: dict[str, PoolAttributes] = {}

    def pattern(self, op: Any, x: ir.Value, limits: ir.Value) -> Any:
        return op.BinaryPack(op.MaxPool(x, _outputs=["pooled"]), limits, _domain=DOMAIN, _outputs=["bits"])

    def check(self, context: Any, x: ir.Value, limits: ir.Value, pooled: ir.Value, bits: ir.Value) -> MatchResult:
        pool = self.layers.wiring.maker.get(str(pooled.name))
        if pool is None:
            return self.refuse(None, "")
        try:
            self._windows[str(bits.name)] = window_of(pool)
        except ValueError as error:
            return self.refuse(pool.name, f"its pool has {error}")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, limits: ir.Value, pooled: ir.Value, bits: ir.Value) -> ir.Value:
        pack, pool = bits.producer(), pooled.producer()
        assert pack is not None  # the pattern has found both
        assert pool is not None
        packed = self.call(op.BinaryPack(x, limits, _domain=DOMAIN, **dict(pack.attributes)), self.name_of(pack))
        made = op.BinaryMaxPool(packed, _domain=DOMAIN, **self._windows[str(bits.name)].values())
        return self.call(made, self.name_of(pool))
