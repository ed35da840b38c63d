"""Replace products of signs with weights of -1 and +1 by those of bits.

Algebra   s = f * (x >= t ? 1 : -1), w = a[o] * b with b of -1 and +1: s w + c = f * a[o] * dot + c, dot a whole number
Pattern   Gemm or MatMul
Check     `binary_find` knows it; otherwise it has said why not
Rewrite   BinaryPack of x by t, BinaryGemm of bits, multiplier f * a, bias c; two of them for what has three values
"""

from __future__ import annotations

from typing import Any

from engines.passes.binary_packing import Found, LayerRule
from engines.passes.binary_rules import Layers

__all__ = ["product_rules"]


class _Gemm(LayerRule):
    op_type = "Gemm"
    kind = "BinaryGemm"


class _MatMul(LayerRule):
    op_type = "MatMul"
    kind = "BinaryGemm"


def product_rules(layers: Layers, left: dict[str, str], found: Found) -> list[Any]:
    """One for each of the two operators."""
    return [rule.rule(layers, left, found) for rule in (_Gemm, _MatMul)]  # type: ignore[no-untyped-call]
