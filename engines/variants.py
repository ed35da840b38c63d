"""Coarser forms of a model: fewer bits, which may be faster or smaller. Made here; judged elsewhere, by their runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import onnx

from engines.errors import ModelRefused
from engines.legality import checked_form
from engines.npz import Samples
from engines.passes.emulated_half import count_infinities, emulate_half
from engines.passes.half import to_half
from engines.passes.prune_24 import prune_24
from engines.passes.prune_channels import prune_channels
from engines.passes.quantize import Quantizer
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.passes.split_projection import split_projections
from engines.passes.stored_half import store_half
from engines.reference import Arrays
from engines.spec import Calibrator, Sparsity

__all__ = [
    "MOST_CALIBRATION_ROWS", "Emulated", "Variant", "half_emulated", "half_variant", "int8_variants", "measured",
    "pruned_variants", "usual_calibrators", "with_projections",
]  # fmt: skip

MOST_CALIBRATION_ROWS = 300
"""Samples whose ranges are measured, NNCF's own number."""
_ROWS_FOR_INFINITIES = 32
_SHARES, _MULTIPLE = (0.4, 0.3, 0.2, 0.1), 8
"""Of all filters that can be removed; what stays fills the vectors of a kernel."""
_MOST_NAMED = 8


class Variant(NamedTuple):
    """`name` tells it from the others of its build. `origin` is the float graph that an INT8 one was made of, `kept`
    its layers that are float again. `pruned`: weights or filters are missing. `form` is that of activations in INT8:
    graphs that have all but their numbers in common run the same kernels.
    """

    name: str
    precision: str
    model: onnx.ModelProto
    note: str = ""
    origin: onnx.ModelProto | None = None
    kept: frozenset[str] = frozenset()
    pruned: bool = False
    form: str = ""

    def is_twin_of(self, other: Variant) -> bool:
        """Whether the two run the same kernels, on other numbers."""
        key, others = ((one.precision, one.form, one.kept, one.pruned) for one in (self, other))
        return self is other or (bool(self.form) and key == others)


class Emulated(NamedTuple):
    """A form that another target computes, written out for ONNX Runtime. `size_bytes` is that of its file."""

    name: str
    precision: str
    model: onnx.ModelProto
    size_bytes: int
    note: str


def half_variant(model: onnx.ModelProto) -> Variant:
    """Weights of 16 bits for a CPU, which computes in FP32."""
    stored, note = store_half(model)
    return Variant("fp16, weights alone", "fp16", checked_form("store half", model, stored), note)


def half_emulated(model: onnx.ModelProto, samples: Samples) -> Emulated:
    """What a target that computes in half answers; nodes whose answers become infinite there stay in FP32."""
    rows = [sample.inputs for sample in itertools.islice(samples, _ROWS_FOR_INFINITIES)]
    infinite = count_infinities(model, rows)
    half, note = to_half(model, infinite)
    checked_form("half", model, half)
    if infinite:
        counted = ", ".join(f"{node} ({count})" for node, count in itertools.islice(infinite.items(), _MOST_NAMED))
        note = f"values became infinite in half at {len(infinite)} nodes, which stay in FP32: {counted}; {note}"
    meaning = checked_form("emulate half", model, emulate_half(model, infinite))
    return Emulated("fp16, computed in half", "fp16", meaning, half.ByteSize(), note)


def usual_calibrators(asked: Calibrator | None) -> tuple[tuple[Calibrator, ...], ...]:
    """What to try, in this order: what was asked for, else the mean of the samples' ranges and all of them, which cost
    little more than one of the two; where none of that is good enough, with tails cut.

    Neither of the first two is the better one: whole ranges kept ResNet-50 with drawn pictures nearer to FP32 (cosine
    of answers less their mean 0.9995, by the mean 0.977), those of the mean keep EfficientNet-Lite0 with photographs
    nearer, and voice activity hears half of the speech without.
    """
    return ((asked,),) if asked else (("mean_minmax", "minmax"), ("percentile",))


def pruned_variants(model: onnx.ModelProto, calibration: Samples, sparsity: Sparsity) -> Iterator[Variant]:
    """Weights or whole filters removed, the most first. Raises ModelRefused where nothing can be."""
    if sparsity == "2:4":
        made, note = prune_24(model, _Rows(calibration))
        if made is model:
            raise ModelRefused(note)
        yield Variant("fp32, 2:4", "fp32", checked_form("prune 2:4", model, made), note, pruned=True)
        return
    for share in _SHARES:
        made, note = prune_channels(model, _Rows(calibration), share, multiple=_MULTIPLE)
        if made is model:
            raise ModelRefused(note)
        checked_form("prune channels", model, made)
        yield Variant(f"fp32, {share:.0%} of the filters removed", "fp32", made, note, pruned=True)


def with_projections(of: Variant) -> Variant:
    """What NNCF can quantize of recurrent layers is brought out of them; the same where there is nothing."""
    model, note = split_projections(of.model)
    return of._replace(model=checked_form("split projections", of.model, model), note=note)


def measured(of: Variant, calibration: Samples, calibrators: Sequence[Calibrator]) -> Quantizer:
    """What INT8 by any of the calibrators is made of. Raises ModelRefused where NNCF cannot quantize the model."""
    rows = _Rows(calibration)
    return Quantizer(of.model, rows, len(rows), calibrators)


def int8_variants(of: Variant, quantizer: Quantizer, calibrator: Calibrator, bits: int) -> Iterator[Variant]:
    """With weights of 7 bits, or of all 8, which a CPU without VNNI may overflow: the graph of every target, signed,
    then one with unsigned activations, which OpenVINO alone takes.

    Raises ModelRefused where NNCF cannot quantize the model, or finds nothing in it to quantize.
    """
    # NNCF writes the sizes that it infers into the outputs
    made = quantizer.quantized(calibrator, overflow_fix=bits == 7)
    checked_form("quantize", of.model, made, new_types=True)
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise ModelRefused("NNCF found nothing in the model to quantize")
    signed, note = sign_activations(made)
    checked_form("sign activations", made, signed)
    forms = {"signed": signed} if signed is made else {"signed": signed, "unsigned": made}
    for form, graph in forms.items():
        freed = checked_form("free residuals", graph, free_residuals(graph)[0])
        name = f"int8 {calibrator}, {form}, {bits}-bit weights{of.name.removeprefix('fp32')}"
        yield Variant(name, "int8", freed, note, origin=of.model, pruned=of.pruned, form=form)


class _Rows:
    """The first samples, read again each time: whoever measures ranges goes over them several times."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return min(self._samples.count, MOST_CALIBRATION_ROWS)

    def __iter__(self) -> Iterator[Arrays]:
        return (sample.inputs for sample in itertools.islice(self._samples, MOST_CALIBRATION_ROWS))
