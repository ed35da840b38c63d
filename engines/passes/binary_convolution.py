"""Replace convolutions of signs with weights of -1 and +1 by those of bits.

Algebra   s = f * (x >= t ? 1 : -1), w = a[o] * b with b of -1 and +1: conv(s, w) + c = f * a[o] * dot + c, dot a whole
          number. The model's own sum rounds at every step, this one twice; both lie within the rounding of the sum
Pattern   Conv
Check     `binary_find` knows it; otherwise it has said why not
Rewrite   BinaryPack of x by t, BinaryConv2d of bits, multiplier f * a, bias c; two of them for what has three values
"""

from __future__ import annotations

from engines.passes.binary_packing import LayerRule

__all__ = ["ConvolutionRule"]


class ConvolutionRule(LayerRule):
    """Pads, strides, dilations and groups are the layer's own."""

    op_type = "Conv"
    kind = "BinaryConv2d"
