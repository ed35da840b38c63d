"""The build, top to bottom: source file -> graph -> passes -> engine -> proof -> plan. Never runs in the server."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnx

from engines import repository
from engines.canonical import canonical
from engines.choice import Choice, Run, Subject, with_axis
from engines.clock import Clock, Progress
from engines.engine import Engine, make_engine, run_sample
from engines.evidence import Found, report_of
from engines.frontend import onnx as frontend
from engines.frontend.ranges import fails_on_values, index_ranges
from engines.gpu_plans import GpuPlan, GpuWork, make_gpu_plans
from engines.guarded import is_integer
from engines.handover import ENGINE_FILE, Plan, write_plan
from engines.hardware import cpu_fingerprint
from engines.inputs import as_model_inputs, declared_inputs
from engines.legality import checked_form
from engines.manifest import EngineFile, Manifest, PlanFile, Source
from engines.npz import Samples, read_samples
from engines.operators import operators_of
from engines.passes.binary_find import find_binary_layers
from engines.passes.binary_layers import with_binary_layers
from engines.passes.fixed_shapes import with_shapes
from engines.passes.image_input import with_image_input
from engines.passes.time_first import time_first
from engines.passes.widen import widen_halves
from engines.precision import Improved, improve
from engines.reference import Reference, in_halves
from engines.report import PassChange, change_of, encode_report
from engines.request import BuildRequest
from engines.runtime.openvino import has_binary_operators
from engines.spec import Spec, require_calibration, require_supported, require_truth
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["build"]

_MOST_NOTES = 20
_OWN_ROWS = 8
"""Of the sender's samples, how many the engine is held against before anything is proven of it."""
_UNFINISHED = "coarser engines were not tried to the end, for the build was ended before: this is the FP32 engine"
_NO_PLANS = "plans for GPUs were not built to the end, for the build was ended before: the CPU answers"


class Keep(Protocol):
    """Takes a plan that may serve should the build not end well; `is_whole` where only plans for GPUs are missing."""

    def __call__(self, plan: Plan, *, is_whole: bool = False) -> None: ...


def _keep_nothing(plan: Plan, *, is_whole: bool = False) -> None: ...


def build(
    request: BuildRequest, out: Path, progress: Progress = lambda stage, share: None, threads: int = 0,
    keep: Keep = _keep_nothing, gpus: tuple[str, ...] = (), timing_cache: str | None = None,
) -> Manifest:  # fmt: skip
    """Compile a model for this machine, write the plan into the folder `out`, and return its manifest.

    `threads` is how many the engine may use, 0 = all usable ones. `keep` is given the plan of the FP32 engine before
    coarser ones are tried, where it may be what serves: trying them can take this process with it; and the plan of the
    one that was chosen before TensorRT builds for GPUs, which may take long. `gpus` stand in for
    those of the spec; `timing_cache` is a folder where TensorRT keeps the times of kernels. Raises ModelRefused
    where the model cannot be compiled, WrongEngine where it answers differently from the reference.
    """
    clock = Clock(progress)
    clock.begin("guard")
    spec = request.read_spec()
    if gpus:
        spec = dataclasses.replace(spec, gpus=gpus)
    require_supported(spec)
    sent, digest, size_bytes = frontend.read(request.source, spec)
    clock.begin("read")
    digests = {**request.digests(), repository.MODEL_FILE: digest}
    samples, calibration = _given_samples(request, spec, sent)
    clock.begin("rewrite")
    subject, changes = _rewritten(sent, spec, samples, clock)
    base = make_engine(subject, samples, spec, threads, clock)

    def plan_of(improved: Improved, gpu_plans: Sequence[GpuPlan], *notes: str) -> Plan:
        engine = improved.engine
        manifest = Manifest(
            key=request.key(threads, digests),
            source=Source(request.source.name, digest, size_bytes),
            engine=EngineFile(ENGINE_FILE, hashlib.sha256(engine.blob).hexdigest(), len(engine.blob)),
            target="openvino",
            tools=repository.tool_versions(),
            hardware=cpu_fingerprint(threads),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            build_s=clock.total_s,
            max_batch=spec.max_batch or 0,
            plans=tuple(_plan_file(made) for made in gpu_plans if made.data),
            **_described(engine, subject, notes),
        )
        found = Found(sent, changes, improved, [made.report for made in gpu_plans], digests)
        report = encode_report(report_of(found, manifest, spec, clock.stages_s))
        return Plan(manifest, report, engine.blob, {made.report.file: made.data for made in gpu_plans if made.data})

    improved = improve(
        subject, base, samples, calibration, spec, threads, clock, lambda first: keep(plan_of(first, (), _UNFINISHED))
    )
    engine = improved.engine
    if spec.gpu_targets:
        keep(plan_of(improved, (), _NO_PLANS), is_whole=True)
    gpu_plans = make_gpu_plans(
        GpuWork(improved.tryouts, subject, engine.choice, spec, engine.max_batch, timing_cache), clock
    )
    clock.begin("publish")
    plan = plan_of(improved, gpu_plans)
    write_plan(plan, out)
    return plan.manifest


def _plan_file(made: GpuPlan) -> PlanFile:
    report = made.report
    return PlanFile(
        target=report.target, file=report.file, sha256=hashlib.sha256(made.data).hexdigest(),
        size_bytes=len(made.data), precision=report.precision, version=report.version, profiles=report.profiles,
        sms=tuple(int(name.removeprefix("SM")) for name in report.gpus), compatibility=report.compatibility,
        plugins=tuple(report.plugins), guards=report.guards, profile_sets=report.profile_sets,
    )  # fmt: skip


def _described(engine: Engine, subject: Subject, further_notes: Sequence[str]) -> dict[str, Any]:
    """What a manifest says of an engine, by field."""
    choice, ranges = engine.choice, index_ranges(subject.model)
    return {
        "precision": engine.precision,
        "inputs": tuple(_bounded(tensor, choice, ranges.get(tensor.name)) for tensor in choice.inputs),
        "outputs": tuple(_output_specs(choice, subject.outputs)),
        "proof": choice.proof,
        "streams": engine.timings[0].streams,
        "threads": engine.timings[0].threads,
        "stream_timings": tuple(engine.timings),
        "enough_rows": engine.enough_rows,
        "sample_shapes": {tensor.name: choice.sampler.shape(tensor) for tensor in choice.sampler.inputs},
        "fails_on_values": any(choice.guards.judged) or fails_on_values(subject.model),
        "guards": choice.guards.judged,
        "notes": (
            *further_notes,
            *_binary_notes(subject.model),
            *choice.notes,
            *choice.guards.notes,
            *_narrowing(subject, choice.integer_bits),
        ),
    }


def _given_samples(request: BuildRequest, spec: Spec, sent: onnx.ModelProto) -> tuple[list[Samples], Samples | None]:
    """What the engine is held against: the validation set first, if there is one, then the calibration samples; these
    again, since they alone may shape it.
    """
    inputs = declared_inputs(spec, frontend.tensor_specs(sent)[0])
    validation = [read_samples(path, inputs, with_truth=True) for path in [request.validation] if path is not None]
    has_samples = bool(validation) or request.calibration is not None
    require_truth(spec, validation[0].truth if validation else None, has_samples=has_samples)
    require_calibration(spec, has_calibration=request.calibration is not None)
    calibration = [read_samples(path, inputs, with_truth=False) for path in [request.calibration] if path is not None]
    return [*validation, *calibration], calibration[0] if calibration else None


def _rewritten(
    sent: onnx.ModelProto, spec: Spec, samples: Sequence[Samples], clock: Clock
) -> tuple[Subject, list[PassChange]]:
    """The graph that every target reads, and the reference of what clients will send to it."""
    turned, note = time_first(sent)
    checked_form("time first", sent, turned)
    first = [change_of("time first", operators_of(sent), operators_of(turned), note)] if note else []
    reference = Reference(turned)
    sized = checked_form("shapes", turned, with_shapes(turned, spec.shapes), new_types=True) if spec.shapes else turned
    model, done = canonical(sized, reference, tell=clock.begin)
    changes, kinds = [*first, *done], {tensor.name: tensor.datatype for tensor in frontend.tensor_specs(model)[0]}
    clock.begin("image inputs")
    for name, image in spec.inputs.items():
        before, title = model, f"pixels of input {name!r}"
        made = with_image_input(before, name, image.layout, image.mean, image.scale)
        model = checked_form(title, before, made, new_types=True)
        changes.append(change_of(title, operators_of(before), operators_of(model)))
    answers: Run = reference
    if spec.inputs:
        answers = lambda arrays: reference(as_model_inputs(spec.inputs, arrays, kinds))  # noqa: E731
    clock.begin("widen halves")
    wide, note = widen_halves(model)
    if note:
        checked_form("widen halves", model, wide)
        changes.append(change_of("widen halves", operators_of(model), operators_of(wide), note))
        answers = in_halves(Reference(wide), answers)
    own = [sample.inputs for given in samples for sample in itertools.islice(given, _OWN_ROWS)]
    for number, row in enumerate(own):
        run_sample(answers, row, number % _OWN_ROWS)
    return Subject(wide, *frontend.tensor_specs(wide), answers, own), changes


def _binary_notes(model: onnx.ModelProto) -> list[str]:
    """What became of binary layers, where it is not what one would expect."""
    found, refused = find_binary_layers(model)
    said = [f"{name} does not run on bits: {reason}" for name, reason in refused.items()]
    if found and not has_binary_operators():
        said.append(f"{len(found)} binary layers run as convolutions of floats: their native kernels are not compiled")
    elif found:
        left, by_reason = dict[str, str](), defaultdict[str, list[str]](list)
        with_binary_layers(model, left)
        for name in left.keys() - refused.keys():
            by_reason[left[name]].append(name)
        said += [f"{', '.join(sorted(names))}: {reason}" for reason, names in sorted(by_reason.items())]
    return said[:_MOST_NOTES]


def _narrowing(subject: Subject, bits: int) -> list[str]:
    """What the engine computes with fewer bits than the model's datatypes have."""
    said = []
    if any(tensor.datatype == "FP64" for tensor in [*subject.inputs, *subject.outputs]):
        said.append("FP64 tensors are computed in FP32")
    if bits < 63:
        said.append(f"integer inputs were found right for magnitudes below 2**{bits}")
    return said


def _bounded(spec: TensorSpec, choice: Choice, value_range: tuple[int, int] | None) -> TensorSpec:
    """Bounds go onto FP64 inputs and integer ones; that of bits onto those whose datatype can exceed it."""
    if spec.datatype == "FP64":
        return msgspec.structs.replace(spec, largest=float(np.finfo(np.float32).max))
    if not is_integer(spec):
        return spec
    bits, largest = choice.integer_bits, int(np.iinfo(datatype(spec.datatype).numpy).max)
    if spec.name in choice.bounds:
        value_range = (0, choice.bounds[spec.name] - 1)
    return msgspec.structs.replace(spec, integer_bits=bits if largest >= 2**bits else 63, value_range=value_range)


def _output_specs(choice: Choice, declared: list[TensorSpec]) -> list[TensorSpec]:
    """Outputs with the shapes that the engine infers; the declared ones may be absent or too wide."""
    specs = []
    for spec in declared:
        port = next(port for port in choice.graph.outputs if spec.name in port.names)
        shape = spec.shape
        if port.partial_shape.rank.is_static:
            shape = tuple(d.get_length() if d.is_static else DYNAMIC for d in port.partial_shape)
        shaped = msgspec.structs.replace(spec, shape=shape)
        axis = choice.output_axes.get(spec.name)
        specs.append(shaped if axis is None else with_axis(shaped, axis))
    return specs
