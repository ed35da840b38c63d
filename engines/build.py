"""The build, top to bottom: source file -> graph -> engine -> batch proof -> plan. Never runs in the server."""

from __future__ import annotations

import datetime
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import openvino as ov

from engines import batchproof, repository
from engines.agreement import (
    WrongEngine,
    agree_at,
    check_agreement,
    integer_bits,
    prove_at,
    twin_of,
)
from engines.batchproof import Blind, Proven, Refuted
from engines.errors import ModelRefused
from engines.frontend import onnx as frontend
from engines.frontend.ranges import index_ranges, takes_sizes_from_values
from engines.guarded import Guards, first_difference, is_integer
from engines.handover import ENGINE_FILE
from engines.hardware import cpu_fingerprint, usable_threads
from engines.manifest import BatchProof, EngineFile, Manifest, Source, StreamTiming, encode
from engines.passes.dynamic_batch import with_batch_axes
from engines.reference import Arrays, Reference
from engines.request import BuildRequest
from engines.samples import Sampler, find_sampler, integer_limits, other_samplers
from engines.targets import openvino as target
from engines.tensor import DYNAMIC, TensorSpec, datatype
from engines.verify import rounding_bound

__all__ = ["build"]

_TIMING_ROWS = 8
_ROUNDING = "the answers change when weights move by one unit in the last place"
Progress = Callable[[str], None]


def build(request: BuildRequest, out: Path, progress: Progress = lambda stage: None, threads: int = 0) -> Manifest:
    """Compile a model for this machine, write the plan into the folder `out`, and return its manifest.

    `threads` is how many the engine may use, 0 = all usable ones. Raises ModelRefused where the model cannot be
    compiled, or answers differently from the reference.
    """
    started = time.monotonic()
    progress("read")
    model, digest, size_bytes = frontend.read(request.source)
    inputs, outputs = frontend.tensor_specs(model)
    ranges = index_ranges(model)
    reference = Reference(model)
    progress("prove")
    choice = _choose(model, inputs, outputs, reference)
    progress("measure")
    timings = _measure(choice, threads or usable_threads())
    progress("compile")
    compiled = target.compile_model(choice.graph, timings[0].streams, timings[0].threads)
    blob = target.export(compiled)
    guards = choice.guards.judged
    manifest = Manifest(
        key=request.key(threads, {**request.digests(), repository.MODEL_FILE: digest}),
        source=Source(request.source.name, digest, size_bytes),
        engine=EngineFile(ENGINE_FILE, hashlib.sha256(blob).hexdigest(), len(blob)),
        target="openvino",
        precision="fp32",
        inputs=tuple(_bounded(spec, choice, ranges.get(spec.name)) for spec in choice.inputs),
        outputs=tuple(_output_specs(choice, outputs)),
        proof=choice.proof,
        streams=timings[0].streams,
        threads=timings[0].threads,
        stream_timings=tuple(timings),
        tools=repository.tool_versions(),
        hardware=cpu_fingerprint(threads),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        build_s=round(time.monotonic() - started, 2),
        sample_shapes={spec.name: choice.sampler.shape(spec) for spec in inputs},
        fails_on_values=any(guards) or takes_sizes_from_values(model),
        guards=guards,
        notes=(*choice.notes, *choice.guards.notes, *_narrowing(inputs, outputs, choice.integer_bits)),
    )
    progress("publish")
    (out / ENGINE_FILE).write_bytes(blob)
    (out / repository.MANIFEST_FILE).write_bytes(encode(manifest))
    return manifest


class _Choice(msgspec.Struct):
    """What will be compiled: a graph, its inputs, and whether its rows were proven independent."""

    graph: ov.Model
    inputs: list[TensorSpec]
    axes: dict[str, int]
    output_axes: dict[str, int]
    proof: BatchProof
    sampler: Sampler
    notes: list[str]
    integer_bits: int
    guards: Guards
    bounds: dict[str, int]
    """Of integer inputs that the engine computes rightly below this number only."""


def _choose(
    model: onnx.ModelProto, inputs: list[TensorSpec], outputs: list[TensorSpec], reference: Reference
) -> _Choice:
    """The first axis assignment that is proven; else the model as it is, one request at a time."""
    reasons: list[str] = []
    for axes in batchproof.axis_candidates(inputs):
        try:
            found = _try_axes(model, inputs, outputs, reference, axes)
        except (ModelRefused, WrongEngine) as refused:  # as it is, the model may still be right
            reasons.append(str(refused))
            continue
        if isinstance(found, _Choice):
            return found
        reasons.append(found.reason)
    return _unbatched(model, inputs, outputs, reference, _why_not(inputs, reasons))


def _why_not(inputs: list[TensorSpec], reasons: list[str]) -> str:
    """One sentence for the index; the reason of the first (most natural) assignment stands for all."""
    if reasons:
        return reasons[0]
    fixed = [f"{spec.name!r} {list(spec.shape)}" for spec in inputs if not {DYNAMIC, 1} & set(spec.shape)]
    if fixed:
        return f"no batch axis: input {fixed[0]} has no dimension that is variable or 1"
    return "no batch axis: no input carries rows in its first dimension"


def _try_axes(
    model: onnx.ModelProto, inputs: list[TensorSpec], outputs: list[TensorSpec], reference: Reference,
    axes: dict[str, int],
) -> _Choice | Refuted | Blind:  # fmt: skip
    notes: list[str] = []
    drawn_below = integer_limits(takes_sizes_from_values(model))
    sampler = find_sampler(inputs, axes, reference, drawn_below)
    freed = with_batch_axes(model, axes)
    names = [spec.name for spec in outputs]
    graph = target.read_model(freed)
    run, guards = _runner(graph, names), Guards(target.guards_of(graph))
    rounding = rounding_bound(model)
    sampler, bounds = guards.narrowed(sampler, inputs, axes, run.watched, reference, rounding, drawn_below)
    rows = sampler.rows()
    verdict: Proven | Refuted | Blind = Blind(_ROUNDING)
    run_of = functools.partial(_runner, outputs=names)
    steady = check_agreement(run.watched, reference, rows, rounding, model, run_of, guards)
    prove_run = run
    if steady:
        verdict = batchproof.prove(run, rows, axes, rounding)
    if isinstance(verdict, Blind):
        twin = with_batch_axes(twin_of(model, rows), axes)
        prove_run = _runner(twin, names)
        blind, verdict = verdict, batchproof.prove(prove_run, rows, axes, rounding)
        if isinstance(verdict, Proven):
            notes.append(f"{blind.reason}; proven on a twin with random weights instead")
    if not isinstance(verdict, Proven):
        return verdict
    if steady and all(spec.shape[axes[spec.name]] == DYNAMIC for spec in inputs):
        meaning = _meaning_of_rows(run, reference, batchproof.join(rows[:3], axes), rounding)
        if meaning:
            return Refuted(meaning)
    others = other_samplers(sampler, reference)
    agree_at(others, run.watched, reference, rounding, model, run_of, guards)
    verdict = prove_at(others, prove_run, axes, rounding, verdict)
    if isinstance(verdict, Refuted):
        return verdict
    if sampler.is_variable and not others:
        notes.append(f"proven with variable dimensions of {sampler.size} alone: ONNX Runtime took no other size")
    batched = [_with_axis(spec, axes[spec.name]) for spec in inputs]
    bits = integer_bits(run.watched, reference, model, inputs, sampler)
    return _Choice(
        graph, batched, axes, verdict.output_axes, verdict.proof, sampler, notes, bits, guards, bounds
    )  # fmt: skip


def _meaning_of_rows(run: target.runner, reference: Reference, company: Arrays, rounding: float) -> str:
    """Why several rows mean something else to the model as its file has it (one cloud of points, say), or nothing."""
    try:
        reference(company)
    except Exception:  # it takes one row only, whatever its shapes say: there is no meaning to change
        return ""
    wrong = first_difference(run, reference, [company], rounding)
    return f"rows belong together: {wrong}" if wrong else ""


def _unbatched(
    model: onnx.ModelProto, inputs: list[TensorSpec], outputs: list[TensorSpec], reference: Reference,
    reason: str,
) -> _Choice:  # fmt: skip
    notes: list[str] = []
    graph = target.read_model(model)
    drawn_below = integer_limits(takes_sizes_from_values(model))
    sampler = find_sampler(inputs, {}, reference, drawn_below)
    names = [spec.name for spec in outputs]
    run, guards = _runner(graph, names), Guards(target.guards_of(graph))
    rounding = rounding_bound(model)
    sampler, bounds = guards.narrowed(sampler, inputs, {}, run.watched, reference, rounding, drawn_below)
    run_of = functools.partial(_runner, outputs=names)
    if not check_agreement(run.watched, reference, sampler.rows(), rounding, model, run_of, guards):
        notes.append(f"{_ROUNDING}; the engine was checked on a twin with random weights instead")
    agree_at(other_samplers(sampler, reference), run.watched, reference, rounding, model, run_of, guards)
    bits = integer_bits(run.watched, reference, model, inputs, sampler)
    return _Choice(graph, inputs, {}, {}, BatchProof(False, reason), sampler, notes, bits, guards, bounds)


def _runner(graph: ov.Model | onnx.ModelProto, outputs: list[str]) -> target.runner:
    if isinstance(graph, onnx.ModelProto):
        graph = target.read_model(graph)
    return target.runner(target.compile_model(graph, 1, usable_threads()), outputs)


def _narrowing(inputs: list[TensorSpec], outputs: list[TensorSpec], bits: int) -> list[str]:
    """What the engine computes with fewer bits than the model's datatypes have."""
    said = []
    if any(spec.datatype == "FP64" for spec in [*inputs, *outputs]):
        said.append("FP64 tensors are computed in FP32")
    if bits < 63:
        said.append(f"integer inputs were found right for magnitudes below 2**{bits}")
    return said


def _with_axis(spec: TensorSpec, axis: int) -> TensorSpec:
    shape = tuple(DYNAMIC if i == axis else d for i, d in enumerate(spec.shape))
    return msgspec.structs.replace(spec, shape=shape, batch_axis=axis)


def _bounded(spec: TensorSpec, choice: _Choice, value_range: tuple[int, int] | None) -> TensorSpec:
    """Bounds go onto FP64 inputs and integer ones; that of bits onto those whose datatype can exceed it."""
    if spec.datatype == "FP64":
        return msgspec.structs.replace(spec, largest=float(np.finfo(np.float32).max))
    if not is_integer(spec):
        return spec
    bits, largest = choice.integer_bits, int(np.iinfo(datatype(spec.datatype).numpy).max)
    if spec.name in choice.bounds:
        value_range = (0, choice.bounds[spec.name] - 1)
    return msgspec.structs.replace(spec, integer_bits=bits if largest >= 2**bits else 63, value_range=value_range)


def _output_specs(choice: _Choice, declared: list[TensorSpec]) -> list[TensorSpec]:
    """Outputs with the shapes that the engine infers; the declared ones may be absent or too wide."""
    specs = []
    for spec in declared:
        port = next(port for port in choice.graph.outputs if spec.name in port.names)
        shape = spec.shape
        if port.partial_shape.rank.is_static:
            shape = tuple(d.get_length() if d.is_static else DYNAMIC for d in port.partial_shape)
        shaped = msgspec.structs.replace(spec, shape=shape)
        axis = choice.output_axes.get(spec.name)
        specs.append(shaped if axis is None else _with_axis(shaped, axis))
    return specs


def _measure(choice: _Choice, threads: int) -> list[StreamTiming]:
    rows = _TIMING_ROWS if choice.axes else 1
    drawn = [choice.sampler.draw(seed) for seed in range(rows)]
    batch = {
        name: np.concatenate([row[name] for row in drawn], axis=choice.axes.get(name, 0))
        if rows > 1
        else drawn[0][name]
        for name in drawn[0]
    }
    return target.time_streams(choice.graph, batch, rows, threads)
