"""Plans for GPUs, of the same graphs that were tried for the CPU: choose a precision by its answers, and build.

A target that computes in half and in INT8 is not here, so its answers are those of ONNX Runtime on the graph that it is
given, with a rounding behind everything that runs in half; its speed is not known, and the fewest bits are taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import onnx

from engines.choice import Choice, Subject
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.emulated_half import count_infinities, emulate_half
from engines.passes.half import to_half
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.report import TargetReport
from engines.spec import Spec
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_process import build_apart
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from engines.tensor import DYNAMIC, ShapeRange
from engines.tryouts import Tryouts, said
from engines.variants import Emulated, Variant

__all__ = ["GpuPlan", "make_gpu_plans", "profiles_of"]

_SMS = {"tensorrt-rtx": (80, 86, 89, 120), "tensorrt": ()}
"""TensorRT builds for the GPU that is here."""
_ROWS_FOR_INFINITIES = 32
_LONGEST = 4
"""Of the size that a variable dimension was proven with, how much larger it may be."""
_PAIRS_ONLY = ("CONVOLUTION", "DECONVOLUTION", "QUANTIZE", "DEQUANTIZE")


class GpuPlan(NamedTuple):
    """What came of one target: `data` is the plan, nothing where there is none."""

    report: TargetReport
    data: bytes = b""


class _Form(NamedTuple):
    """A graph for a GPU, and its meaning for ONNX Runtime."""

    name: str
    precision: str
    graph: onnx.ModelProto
    meaning: onnx.ModelProto
    note: str


def make_gpu_plans(
    tryouts: Tryouts, subject: Subject, choice: Choice, spec: Spec, max_batch: int, progress: Callable[[str], None]
) -> tuple[GpuPlan, ...]:
    """A plan for each target of the spec but the CPU, or why there is none. `progress` is told the stages."""
    targets = [target for target in spec.targets if target != "openvino"]
    if not targets:
        return ()
    progress("judge")
    form, reason = _first_that_holds(tryouts, subject, spec, targets[0])
    if form is None:
        return tuple(GpuPlan(TargetReport(target=target, made=False, reason=reason)) for target in targets)
    return tuple(_made(target, form, choice, spec, max_batch, progress) for target in targets)


def _first_that_holds(tryouts: Tryouts, subject: Subject, spec: Spec, target: str) -> tuple[_Form | None, str]:
    reasons: list[str] = []
    for make in _forms(tryouts, subject, spec):
        try:
            form = make()
            refuse_for_tensorrt(form.graph)
            judged = tryouts.emulate(
                Emulated(form.name, form.precision, form.meaning, form.graph.ByteSize(), form.note), target
            )
        except Exception as error:
            reasons.append(said(error))
            continue
        if judged.passed:
            return form, ""
        reasons.append(f"{form.name}: {judged.reason}")
    return None, "; ".join(dict.fromkeys(reasons)) or f"no {spec.precision} graph of it was made"


def _forms(tryouts: Tryouts, subject: Subject, spec: Spec) -> Iterator[Callable[[], _Form]]:
    """How each is made, the fewest bits first, as far as the spec wants them."""
    rows = [sample.inputs for sample in itertools.islice(tryouts.judges, _ROWS_FOR_INFINITIES)]

    def halved(name: str, precision: str, model: onnx.ModelProto) -> _Form:
        infinite = count_infinities(model, rows)
        graph, note = to_half(model, infinite)
        return _Form(f"{name}fp16", precision, graph, emulate_half(model, infinite), note)

    if spec.precision in ("auto", "int8"):
        for variant in _signed(tryouts):
            yield lambda v=variant: halved(f"{v.name}, else ", v.precision, v.model)  # type: ignore[misc]
            yield lambda v=variant: _Form(f"{v.name}, else fp32", v.precision, v.model, v.model, "")  # type: ignore[misc]
    if spec.precision in ("auto", "fp16"):
        yield lambda: halved("", "fp16", subject.model)
    if spec.precision in ("auto", "fp32"):
        yield lambda: _Form("fp32", "fp32", subject.model, subject.model, "")


def _signed(tryouts: Tryouts) -> list[Variant]:
    """INT8 graphs as a GPU takes them, which has no sums of 16 bits to overflow: weights of 8 bits before those of 7,
    and those before mixtures. What the CPU made of them does not count.
    """
    found: dict[bytes, Variant] = {}
    for variant in tryouts.variants:
        if variant.precision in ("int8", "mixed"):
            model = free_residuals(sign_activations(variant.model)[0])[0]
            found.setdefault(model.SerializeToString(deterministic=True), variant._replace(model=model))
    return sorted(found.values(), key=lambda one: (one.precision != "int8", "8-bit" not in one.name))


def _made(
    target: str, form: _Form, choice: Choice, spec: Spec, max_batch: int, progress: Callable[[str], None]
) -> GpuPlan:
    progress(f"build {target}")
    try:
        graph = with_batch_axes(form.graph, choice.axes) if choice.axes else form.graph
        options = _options(target, spec, profiles_of(graph, choice, max_batch, spec.buckets))
        data, built = build_apart(target, graph, options)
        _require_same_network(graph, built)
    except Exception as error:
        return GpuPlan(TargetReport(target=target, made=False, reason=said(error)))
    report = TargetReport(
        target=target, made=True, chosen=form.name, precision=form.precision, size_bytes=built.size_bytes,
        seconds=built.seconds, version=built.version, gpus=tuple(f"SM{sm}" for sm in built.sms),
        profiles=options.profiles, network=built.network, warnings=built.warnings,
    )  # fmt: skip
    return GpuPlan(report, data)


def _options(target: str, spec: Spec, profiles: tuple[dict[str, ShapeRange], ...]) -> PlanOptions:
    asked = PlanOptions(
        profiles=profiles, sms=tuple(int(gpu.removeprefix("sm")) for gpu in spec.gpus) or _SMS[target],
        is_sparse=spec.sparsity == "2:4",
        # TensorRT-RTX has no levels, and names its GPUs instead
        compatibility=spec.hardware_compatibility if target == "tensorrt" else "none",
    )  # fmt: skip
    bytes_ = spec.workspace_bytes
    return asked if bytes_ is None else msgspec.structs.replace(asked, workspace_bytes=bytes_)


def profiles_of(
    model: onnx.ModelProto, choice: Choice, max_batch: int, buckets: Sequence[int] = ()
) -> tuple[dict[str, ShapeRange], ...]:
    """One profile for all sizes: rows from 1 to `max_batch`, fastest at that; with `buckets`, one for each number of
    rows. Variable dimensions go from half the size that they were proven with to four times that. None where no
    dimension is variable.
    """
    rows = [(size, size, size) for size in buckets] if choice.axes else []
    found = [_ranges(model, choice, one) for one in rows or [(1, max_batch, max_batch)]]
    return tuple(found) if found[0] else ()


def _ranges(model: onnx.ModelProto, choice: Choice, rows: tuple[int, int, int]) -> dict[str, ShapeRange]:
    ranges: dict[str, ShapeRange] = {}
    for tensor in tensor_specs(model)[0]:
        if DYNAMIC not in tensor.shape:
            continue
        axis, sample = choice.axes.get(tensor.name), choice.sampler.shape(tensor)
        sizes = [
            rows if i == axis else (max(1, proven // 2), proven, _LONGEST * proven)
            if size == DYNAMIC else (size, size, size)
            for i, (size, proven) in enumerate(zip(tensor.shape, sample, strict=True))
        ]  # fmt: skip
        low, best, high = (tuple(one[k] for one in sizes) for k in range(3))
        ranges[tensor.name] = (low, best, high)
    return ranges


def _require_same_network(graph: onnx.ModelProto, built: BuiltPlan) -> None:
    """Raise ModelRefused where the parser made other layers, or other datatypes, than the graph has."""
    asked = graph_counts(graph)
    parsed = {key: count for key, count in built.network.items() if key.startswith(_PAIRS_ONLY)}
    if asked != parsed:
        raise ModelRefused(f"the parser made another network than it was given: {parsed}, expected {asked}")
