"""The build, top to bottom: source file -> graph -> passes -> engine -> proof -> plan. Never runs in the server."""

from __future__ import annotations

import datetime
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import openvino as ov

from engines import batchproof, repository
from engines.accuracy import assess, shortfall
from engines.agreement import WrongEngine
from engines.canonical import canonical
from engines.choice import Choice, Run, Subject, choose, with_axis
from engines.errors import ModelRefused
from engines.evidence import Clock, Found, report_of
from engines.frontend import onnx as frontend
from engines.frontend.ranges import index_ranges, takes_sizes_from_values
from engines.guarded import SLACK, fired, is_integer
from engines.handover import ENGINE_FILE
from engines.hardware import cpu_fingerprint, usable_threads
from engines.inputs import as_model_inputs, declared_inputs
from engines.layers import first_differing_layer
from engines.manifest import EngineFile, Manifest, Source, StreamTiming, encode
from engines.npz import DrawnSamples, Samples, SomeSamples, read_samples
from engines.operators import operators_of
from engines.passes.fixed_shapes import with_shapes
from engines.passes.image_input import with_image_input
from engines.reference import Arrays, Reference
from engines.report import Accuracy, PassChange, Speed, change_of, encode_report
from engines.request import BuildRequest
from engines.samples import SCALES
from engines.spec import Spec, require_supported, require_truth
from engines.targets import openvino as target
from engines.targets.openvino_profile import layers_of, speeds_of
from engines.tensor import DYNAMIC, TensorSpec, datatype
from engines.verify import rounding_bound

__all__ = ["build"]

_TIMING_ROWS = 8
_OWN_ROWS = 8
"""Of the sender's samples, how many the engine is held against before anything is proven of it."""
_USUAL_BATCH = 32
_CHECK_BUDGET_S = 10.0
"""For samples without a truth; a validation set is run to its end."""
Progress = Callable[[str], None]


def build(request: BuildRequest, out: Path, progress: Progress = lambda stage: None, threads: int = 0) -> Manifest:
    """Compile a model for this machine, write the plan into the folder `out`, and return its manifest.

    `threads` is how many the engine may use, 0 = all usable ones. Raises ModelRefused where the model cannot be
    compiled, WrongEngine where it answers differently from the reference.
    """
    clock = Clock(progress)
    clock.begin("read")
    spec = request.read_spec()
    require_supported(spec)
    sent, digest, size_bytes = frontend.read(request.source)
    digests = {**request.digests(), repository.MODEL_FILE: digest}
    samples = _given_samples(request, spec, sent)
    clock.begin("rewrite")
    subject, changes = _rewritten(sent, spec, samples)
    clock.begin("prove")
    try:
        choice = choose(subject)
    except WrongEngine as wrong:
        raise WrongEngine(f"{wrong}{_first_layer(subject, wrong.row)}", wrong.row) from wrong
    clock.begin("measure")
    timings = _measure(choice, threads or usable_threads(), spec)
    clock.begin("compile")
    config = timings[0].streams, timings[0].threads
    compiled = target.compile_model(choice.graph, *config)
    blob = target.export(compiled)
    clock.begin("check")
    accuracy = _checked(subject, choice, target.reimported(blob, *config), samples, spec)
    layers = layers_of(compiled)
    max_batch = (spec.max_batch or _USUAL_BATCH) if choice.axes else 1
    speeds = _speeds(choice, compiled, max_batch)
    clock.begin("publish")
    manifest = Manifest(
        key=request.key(threads, digests),
        source=Source(request.source.name, digest, size_bytes),
        engine=EngineFile(ENGINE_FILE, hashlib.sha256(blob).hexdigest(), len(blob)),
        target="openvino",
        precision="fp32",
        inputs=tuple(_bounded(s, choice, index_ranges(subject.model).get(s.name)) for s in choice.inputs),
        outputs=tuple(_output_specs(choice, subject.outputs)),
        proof=choice.proof,
        streams=timings[0].streams,
        threads=timings[0].threads,
        stream_timings=tuple(timings),
        tools=repository.tool_versions(),
        hardware=cpu_fingerprint(threads),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        build_s=clock.total_s,
        sample_shapes={tensor.name: choice.sampler.shape(tensor) for tensor in subject.inputs},
        fails_on_values=any(choice.guards.judged) or takes_sizes_from_values(subject.model),
        guards=choice.guards.judged,
        notes=(*choice.notes, *choice.guards.notes, *_narrowing(subject, choice.integer_bits)),
        max_batch=spec.max_batch or 0,
    )
    found = Found(sent, changes, accuracy, layers, speeds, max_batch, digests)
    (out / repository.REPORT_FILE).write_bytes(encode_report(report_of(found, manifest, spec, clock.stages_s)))
    (out / ENGINE_FILE).write_bytes(blob)
    (out / repository.MANIFEST_FILE).write_bytes(encode(manifest))
    return manifest


def _given_samples(request: BuildRequest, spec: Spec, sent: onnx.ModelProto) -> Samples | None:
    """What the engine is judged on: the validation set, else the calibration samples. Both are read, to be refused."""
    inputs = declared_inputs(spec, frontend.tensor_specs(sent)[0])
    given = [
        read_samples(path, inputs, with_truth=with_truth)
        for path, with_truth in ((request.validation, True), (request.calibration, False))
        if path is not None
    ]
    require_truth(spec, given[0].truth if given else None)
    return given[0] if given else None


def _rewritten(sent: onnx.ModelProto, spec: Spec, samples: Samples | None) -> tuple[Subject, list[PassChange]]:
    """The graph that every target reads, and the reference of what clients will send to it."""
    reference = Reference(sent)
    model, done = canonical(with_shapes(sent, spec.shapes) if spec.shapes else sent, reference)
    changes = list(done)
    answers: Run = reference
    if spec.inputs:
        kinds = {tensor.name: tensor.datatype for tensor in frontend.tensor_specs(model)[0]}
        answers = lambda arrays: reference(as_model_inputs(spec.inputs, arrays, kinds))  # noqa: E731
    for name, image in spec.inputs.items():
        before = operators_of(model)
        model = with_image_input(model, name, image.layout, image.mean, image.scale)
        changes.append(change_of(f"pixels of input {name!r}", before, operators_of(model)))
    own = [sample.inputs for sample in itertools.islice(samples, _OWN_ROWS)] if samples is not None else []
    return Subject(model, *frontend.tensor_specs(model), answers, own), changes


def _checked(
    subject: Subject, choice: Choice, compiled: ov.CompiledModel, given: Samples | None, spec: Spec
) -> Accuracy:
    """The engine that will serve, held against the reference and the truth. Raises WrongEngine or ModelRefused."""
    run = target.runner(compiled, subject.names)
    kept, judged = _answered(run, choice, given if given is not None else DrawnSamples(choice.sampler, len(SCALES)))
    accuracy = assess(
        run, subject.reference, judged, spec.metric, tolerance=SLACK * rounding_bound(subject.model), axes=choice.axes,
        output_axes=choice.output_axes, budget_s=None if judged.truth else _CHECK_BUDGET_S,
    )  # fmt: skip
    if accuracy.over_bound and choice.steady:
        worst = accuracy.worst[0]
        row = next(itertools.islice(judged, worst.index, None)).inputs
        raise WrongEngine(
            f"{accuracy.over_bound} of {accuracy.samples} samples differ from ONNX Runtime by more than rounding; the "
            f"worst is sample {kept[worst.index]}, output {worst.output!r}: off by {worst.difference}, bound "
            f"{worst.bound}{_first_layer(subject, row)}",
            row,
        )
    lacking = shortfall(accuracy, spec.accuracy_budget)
    if lacking:
        raise ModelRefused(f"precision fp32: {lacking}")
    worst_ones = tuple(msgspec.structs.replace(one, index=kept[one.index]) for one in accuracy.worst)
    return msgspec.structs.replace(accuracy, worst=worst_ones)


def _answered(run: target.runner, choice: Choice, samples: Samples) -> tuple[Sequence[int], Samples]:
    """The samples that the engine does not refuse by a guard, and their numbers. Raises ModelRefused for none."""
    if not any(choice.guards.judged):
        return range(samples.count), samples
    refused = {}
    for i, sample in enumerate(samples):
        heard = fired(run.watched(sample.inputs)) - choice.guards.false_alarms
        if heard:
            refused[i] = choice.guards.said[min(heard)]
    if len(refused) == samples.count:
        raise ModelRefused(f"the engine refuses every sample: {next(iter(refused.values()))}")
    if refused and not samples.synthetic:
        first, why = next(iter(refused.items()))
        choice.notes.append(f"{len(refused)} of {samples.count} samples are refused, the first is {first}: {why}")
    kept = [i for i in range(samples.count) if i not in refused]
    return kept, SomeSamples(samples, kept) if refused else samples


def _first_layer(subject: Subject, row: Arrays) -> str:
    """Where the engine goes wrong, in words; nothing where that cannot be seen."""

    def engine_of(opened: onnx.ModelProto, names: Sequence[str]) -> Run:
        return target.runner(target.compile_model(target.read_model(opened), 1, usable_threads()), names)

    try:
        rounding = SLACK * rounding_bound(subject.model)
        first = first_differing_layer(subject.model, row, Reference, engine_of, rounding)
    except Exception:  # a search for more words must not hide the reason itself
        return ""
    if first is None:
        return ""
    return (
        f"; the first layer that differs is {first.op_type} {first.node!r} (output {first.output!r}, off by "
        f"{first.difference:.3g}, bound {first.bound:.3g})"
    )


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


def _measure(choice: Choice, threads: int, spec: Spec) -> list[StreamTiming]:
    rows = _TIMING_ROWS if choice.axes else 1
    one_stream = spec.objective == "latency"  # all threads for each request, whatever that costs the others
    return target.time_streams(choice.graph, _batch(choice, rows), rows, threads, one_stream=one_stream)


def _speeds(choice: Choice, compiled: ov.CompiledModel, max_batch: int) -> tuple[Speed, ...]:
    """At one row and at `max_batch`; where that takes too long to be timed again, the proof has run it once."""
    speeds = speeds_of(compiled, functools.partial(_batch, choice), max_batch)
    full_s = choice.proof.full_batch_s
    if speeds[-1].rows < max_batch == batchproof.FULL_BATCH_ROWS and full_s:
        once = Speed(max_batch, round(full_s * 1e6, 1), round(max_batch / full_s, 1), 1)
        speeds = (speeds[0], once)
    return speeds


def _batch(choice: Choice, rows: int) -> Arrays:
    drawn = [choice.sampler.draw(seed) for seed in range(rows)]
    return batchproof.join(drawn, choice.axes) if choice.axes else drawn[0]
