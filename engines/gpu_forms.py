"""The graphs of a model for a GPU, the fewest bits first, each with its meaning for ONNX Runtime.

Layers that are binary already stay so in each of them, as operators of bits in FP32, whatever precision is asked for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import onnx

from engines.choice import Subject
from engines.legality import checked_form
from engines.passes.binary_layers import with_binary_layers
from engines.passes.emulated_half import count_infinities, emulate_half
from engines.passes.half import to_half
from engines.passes.half_rules import WEIGHTED
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN
from engines.spec import Spec
from engines.targets.tensorrt_binary import has_binary_layers
from engines.tryouts import Tryouts
from engines.variants import Variant

__all__ = ["Form", "before_signs", "forms"]

_ROWS_FOR_INFINITIES = 32


class Form(NamedTuple):
    """A graph for a GPU, and its meaning for ONNX Runtime. `is_sparse`: two of every four weights are 0."""

    name: str
    precision: str
    graph: onnx.ModelProto
    meaning: onnx.ModelProto
    note: str
    is_sparse: bool


def forms(tryouts: Tryouts, subject: Subject, spec: Spec) -> Iterator[Callable[[], Form]]:
    """How each is made, the fewest bits first, as far as the spec wants them."""
    rows = [sample.inputs for sample in itertools.islice(tryouts.judges, _ROWS_FOR_INFINITIES)]

    def halved(name: str, precision: str, variant: Variant, *, signs_in_half: bool = True) -> Form:
        model = _on_bits(variant.model)
        kept = set() if signs_in_half else before_signs(model)
        kept |= count_infinities(model, rows, kept).keys()
        graph, note = to_half(model, kept)
        checked_form("half", model, graph)
        return Form(name, precision, graph, emulate_half(model, kept), note, is_sparse(variant))

    def whole(name: str, variant: Variant) -> Form:
        model = _on_bits(variant.model)
        return Form(name, variant.precision, model, model, "", is_sparse(variant))

    def is_sparse(variant: Variant) -> bool:
        return variant.pruned and spec.sparsity == "2:4"

    if spec.precision in ("auto", "int8"):
        for variant in _signed(tryouts):
            yield functools.partial(halved, f"{variant.name}, else fp16", variant.precision, variant)
            yield functools.partial(whole, f"{variant.name}, else fp32", variant)
    pruned = (one.variant for one in tryouts.tried if one.passed and one.variant.pruned)
    source = next((one for one in pruned if one.precision == "fp32"), Variant("fp32", "fp32", subject.model))
    if spec.precision in ("auto", "fp16"):
        name = source.name.replace("fp32", "fp16", 1)
        yield functools.partial(halved, name, "fp16", source)
        if has_binary_layers(_on_bits(source.model)):
            yield functools.partial(halved, f"{name}, fp32 before signs", "fp16", source, signs_in_half=False)
    if spec.precision in ("auto", "fp32"):
        yield functools.partial(whole, source.name, source)


def _signed(tryouts: Tryouts) -> list[Variant]:
    """INT8 graphs as a GPU takes them, which has no sums of 16 bits to overflow: weights of 8 bits before those of 7,
    and those before mixtures. What the CPU made of them does not count.
    """
    found: dict[bytes, Variant] = {}
    for variant in tryouts.variants:
        if variant.precision in ("int8", "mixed"):
            model = checked_form("sign", variant.model, free_residuals(sign_activations(variant.model)[0])[0])
            found.setdefault(model.SerializeToString(deterministic=True), variant._replace(model=model))
    return sorted(found.values(), key=lambda one: (one.precision != "int8", "8-bit" not in one.name))


def _on_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """With its binary layers as operators of bits, if there are any, and what these mean."""
    written, _ = with_binary_layers(model)
    return checked_form("binary layers", model, with_bodies(written)) if written is not model else model


def before_signs(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between a BinaryPack and the nearest layers with weights before it, these included: rounding
    turns signs of what is near 0.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [node.input[0] for node in graph.node if node.domain == DOMAIN and node.op_type == "BinaryPack"]
    found: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.domain == DOMAIN or node.name in found:
            continue
        found.add(node.name)
        if node.op_type not in WEIGHTED:
            waiting.extend(node.input)
    return found
