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
from engines.clock import Clock
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.gpu_forms import Form, forms
from engines.handover import PLAN_FILES
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.guards import with_guards
from engines.report import Candidate, TargetReport
from engines.spec import Spec
from engines.targets.tensorrt_binary import lowerings
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_process import BuilderLate, build_apart
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from engines.targets.tensorrt_seam import require_builder, sms_of
from engines.tensor import DYNAMIC, ShapeRange
from engines.tryouts import Tryouts, said
from engines.variants import Emulated

__all__ = ["GpuPlan", "GpuWork", "make_gpu_plans", "profiles_of"]

_LONGEST = 4
"""Of the size that a variable dimension was proven with, how much larger it may be."""
_PAIRS_ONLY = ("CONVOLUTION", "DECONVOLUTION", "QUANTIZE", "DEQUANTIZE", "Binary")


class GpuPlan(NamedTuple):
    """What came of one target: `data` is the plan, nothing where there is none."""

    report: TargetReport
    data: bytes = b""


class _Judged(NamedTuple):
    """A form and what was thought of its answers; no form where it could not be made, and then why."""

    form: Form | None
    candidate: Candidate | None
    reason: str


class GpuWork(NamedTuple):
    """What plans are made of: all that was tried, the model, the proof of its rows, what is asked."""

    tryouts: Tryouts
    subject: Subject
    choice: Choice
    spec: Spec
    max_batch: int
    timing_cache: str | None
    """Folder of measured kernel times, where one is kept."""


def make_gpu_plans(work: GpuWork, clock: Clock) -> tuple[GpuPlan, ...]:
    """Plans for each target of the spec but the CPU, or why there is none."""
    judged = _Judgements(work, clock)
    return tuple(made for target in work.spec.gpu_targets for made in _made(work, target, judged, clock))


class _Judgements:
    """Forms, the fewest bits first, each made and judged once, when the first target asks for it."""

    def __init__(self, work: GpuWork, clock: Clock) -> None:
        self._tryouts, self._clock = work.tryouts, clock
        self._makers = forms(work.tryouts, work.subject, work.spec)
        self._done: list[_Judged] = []

    def of(self, target: str) -> Iterator[_Judged]:
        for number in itertools.count():
            if number == len(self._done):
                self._clock.begin("judge")
                make = next(self._makers, None)
                if make is None:
                    return
                self._done.append(self._judged(make))
            judged = self._done[number]
            if judged.candidate is not None:
                self._tryouts.note_elsewhere(judged.candidate, target)
            yield judged

    def _judged(self, make: Callable[[], Form]) -> _Judged:
        try:
            form = make()
            refuse_for_tensorrt(form.graph)
            candidate = self._tryouts.emulate(
                Emulated(form.name, form.precision, form.meaning, form.graph.ByteSize(), form.note)
            )
        except Exception as error:
            return _Judged(None, None, said(error))
        return _Judged(form, candidate, "" if candidate.passed else f"{form.name}: {candidate.reason}")


def _made(work: GpuWork, target: str, judgements: _Judgements, clock: Clock) -> list[GpuPlan]:
    """The plans of the first form that holds the budget and that the target's builder takes."""
    reasons: list[str] = []
    try:
        require_builder(target)
        for judged in judgements.of(target):
            if judged.reason or judged.form is None:
                reasons.append(judged.reason)
                continue
            try:
                return _built(work, target, judged.form, clock)
            except BuilderLate:
                raise
            except Exception as error:
                reasons.append(said(error))
    except Exception as error:
        reasons.append(said(error))
    reason = "; ".join(dict.fromkeys(reasons)) or f"no {work.spec.precision} graph of it was made"
    return [GpuPlan(TargetReport(target=target, made=False, reason=reason))]


def _built(work: GpuWork, target: str, form: Form, clock: Clock) -> list[GpuPlan]:
    """Raises ModelRefused where the builder does not take it."""
    clock.begin(f"build {target}")
    choice = work.choice
    whole = with_batch_axes(form.graph, choice.axes) if choice.axes else form.graph
    graph, guards = with_guards(whole, on_gpu=True)
    asked = tuple(int(gpu.removeprefix("sm")) for gpu in work.spec.gpus)
    options = _options(
        target, work, form, profiles_of(graph, choice, work.max_batch, work.spec.buckets) * work.spec.profile_sets
    )
    made = []
    for lowering, file in zip(lowerings(graph, sms_of(target, asked)), PLAN_FILES[target], strict=False):
        own = msgspec.structs.replace(options, sms=lowering.sms, has_plugins=lowering.has_plugins)
        data, built = build_apart(target, lowering.graph, own, clock.advance)
        _require_same_network(lowering.graph, built)
        report = TargetReport(
            target=target, made=True, chosen=form.name, precision=form.precision, size_bytes=built.size_bytes,
            seconds=built.seconds, version=built.version, gpus=tuple(f"SM{sm}" for sm in built.sms),
            profiles=options.profiles, profile_sets=work.spec.profile_sets, network=built.network,
            warnings=built.warnings, compatibility=options.compatibility, file=file, binary=lowering.said,
            plugins=dict(lowering.plugins),
            binary_weight_bytes=lowering.weight_bytes, guards=choice.guards.of_another(guards).judged,
        )  # fmt: skip
        made.append(GpuPlan(report, data))
    return made


def _options(target: str, work: GpuWork, form: Form, profiles: tuple[dict[str, ShapeRange], ...]) -> PlanOptions:
    spec = work.spec
    asked = PlanOptions(
        profiles=profiles, is_sparse=form.is_sparse, timing_cache=work.timing_cache,
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
    if buckets and any(DYNAMIC in spec.row_shape for spec in choice.inputs):
        raise ModelRefused("buckets are for models whose rows have one shape: others run with the rows that there are")
    rows = [(size, size, size) for size in buckets] if choice.axes else []
    found = [_ranges(model, choice, one) for one in rows or [(1, max_batch, max_batch)]]
    return tuple(found) if found[0] else ()


def _ranges(model: onnx.ModelProto, choice: Choice, rows: tuple[int, int, int]) -> dict[str, ShapeRange]:
    ranges: dict[str, ShapeRange] = {}
    proven = {tensor.name: tensor for tensor in choice.sampler.inputs}  # may have fewer variable dimensions
    for tensor in tensor_specs(model)[0]:
        if DYNAMIC not in tensor.shape:
            continue
        served = proven[tensor.name]
        axis, sample = choice.axes.get(tensor.name), choice.sampler.shape(served)
        sizes = [
            rows if i == axis else (max(1, size // 2), size, _LONGEST * size) if dim == DYNAMIC else (size, size, size)
            for i, (dim, size) in enumerate(zip(served.shape, sample, strict=True))
        ]
        low, best, high = (tuple(one[k] for one in sizes) for k in range(3))
        ranges[tensor.name] = (low, best, high)
    return ranges


def _require_same_network(graph: onnx.ModelProto, built: BuiltPlan) -> None:
    """Raise ModelRefused where the parser made other layers, or other datatypes, than the graph has."""
    asked = graph_counts(graph)
    parsed = {key: count for key, count in built.network.items() if key.startswith(_PAIRS_ONLY)}
    if asked != parsed:
        raise ModelRefused(f"the parser made another network than it was given: {parsed}, expected {asked}")
