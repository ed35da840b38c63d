"""Write binary layers in bits, by one set of rules after the other; each file says what it does.

binary convolution, binary product: signs are packed, layers of +-1 work on bits and give floats
thresholds:                         a sign of what follows from a layer's sums is taken of the whole numbers themselves
epilogues, pools:                   what follows the other sums is computed with them, what is packed is pooled as bits
"""

from __future__ import annotations

from onnx import ModelProto

from engines.passes.binary_find import find_binary_layers

__all__ = ["with_binary_layers"]


def with_binary_layers(model: ModelProto, left: dict[str, str] | None = None) -> tuple[ModelProto, tuple[str, ...]]:
    """The model with all of them as `bnn` operators, and their names. It is the same object where there are none.

    `left` gets the reasons why floats stay behind some of them, or why they are no binary layers, by name.
    """
    found, refused = find_binary_layers(model)
    left = {} if left is None else left
    left.update(refused)
    if not found:
        return model, ()
    # loading the rewriter takes longer than everything before it
    from engines.passes.binary_convolution import ConvolutionRule
    from engines.passes.binary_epilogues import epilogue_rules
    from engines.passes.binary_packing import Found
    from engines.passes.binary_pools import PoolRule
    from engines.passes.binary_product import product_rules
    from engines.passes.binary_rules import Layers, applied
    from engines.passes.binary_thresholds import ThresholdRule

    layers, layer = Layers(model), Found(found)
    convolution = ConvolutionRule.rule(layers, left, layer)  # type: ignore[no-untyped-call]
    on_bits = applied(model, layers, [convolution, *product_rules(layers, left, layer)])
    if on_bits is model:
        return model, ()
    layers = Layers(on_bits)
    told = applied(on_bits, layers, [ThresholdRule.rule(layers, left)])  # type: ignore[no-untyped-call]
    layers = Layers(told)
    pool = PoolRule.rule(layers, left)  # type: ignore[no-untyped-call]
    fused = applied(told, layers, [*epilogue_rules(layers, left), pool])
    return fused, tuple(one.node.name for one in found)
