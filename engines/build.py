"""The build, top to bottom: source file -> graph -> engine -> batch proof -> plan. Never runs in the server."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import openvino as ov

from engines import batchproof, repository
from engines.batchproof import Blind, Proven, Refuted
from engines.errors import EngineError, ModelRefused
from engines.frontend import onnx as frontend
from engines.hardware import cpu_fingerprint, usable_threads
from engines.manifest import BatchProof, EngineFile, Manifest, Source, StreamTiming, encode
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.random_weights import with_random_weights
from engines.reference import Arrays, Reference
from engines.samples import SCALES, Sampler, find_sampler
from engines.targets import openvino as target
from engines.tensor import DYNAMIC, TensorSpec
from engines.verify import rounding_bound

__all__ = ["build"]

ENGINE_FILE = "engine.blob"
_TIMING_ROWS = 8
_REFERENCE_SLACK = 16.0
Progress = Callable[[str], None]


def build(source: Path, cache: repository.PlanCache, progress: Progress = lambda stage: None) -> Manifest:
    """Compile `source` for this machine and store the plan in `cache`; return its manifest.

    Raises ModelRefused where the model cannot be compiled, or answers differently from the reference.
    """
    started = time.monotonic()
    progress("read")
    digest = repository.file_sha256(source)
    model = frontend.read(source)
    inputs, outputs = frontend.tensor_specs(model)
    reference = Reference(model)
    progress("prove")
    choice = _choose(model, inputs, outputs, reference)
    progress("measure")
    timings = _measure(choice)
    progress("compile")
    compiled = target.compile_model(choice.graph, timings[0].streams, timings[0].threads)
    blob = target.export(compiled)
    manifest = Manifest(
        key=repository.plan_key(digest),
        source=Source(source.name, digest, source.stat().st_size),
        engine=EngineFile(ENGINE_FILE, hashlib.sha256(blob).hexdigest(), len(blob)),
        target="openvino",
        precision="fp32",
        inputs=tuple(choice.inputs),
        outputs=tuple(_output_specs(choice, outputs)),
        proof=choice.proof,
        streams=timings[0].streams,
        threads=timings[0].threads,
        stream_timings=tuple(timings),
        tools=repository.tool_versions(),
        hardware=cpu_fingerprint(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        build_s=round(time.monotonic() - started, 2),
        sample_shapes={spec.name: choice.sampler.shape(spec) for spec in inputs},
        notes=tuple(choice.notes),
    )
    progress("publish")
    _store(cache, manifest, blob)
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


def _choose(
    model: onnx.ModelProto, inputs: list[TensorSpec], outputs: list[TensorSpec], reference: Reference
) -> _Choice:
    """The first axis assignment that is proven; else the model as it is, one request at a time."""
    notes: list[str] = []
    reasons: list[str] = []
    for axes in batchproof.axis_candidates(inputs):
        try:
            found = _try_axes(model, inputs, outputs, reference, axes, notes)
        except ModelRefused as refused:
            reasons.append(str(refused))
            continue
        if isinstance(found, _Choice):
            return found
        reasons.append(found.reason)
    return _unbatched(model, inputs, outputs, reference, notes, _why_not(inputs, reasons))


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
    axes: dict[str, int], notes: list[str],
) -> _Choice | Refuted | Blind:  # fmt: skip
    sampler = find_sampler(inputs, axes, reference)
    rows = [sampler.draw(seed, scale) for seed, scale in enumerate(SCALES)]
    freed = with_batch_axes(model, axes)
    names = [spec.name for spec in outputs]
    graph = target.read_model(freed)
    run = target.runner(target.compile_model(graph, 1, usable_threads()), names)
    rounding = rounding_bound(model)
    _check_against_reference(run, reference, rows, rounding)
    verdict = batchproof.prove(run, rows, axes, rounding)
    if isinstance(verdict, Blind):
        twin = target.runner(
            target.compile_model(target.read_model(with_random_weights(freed)), 1, usable_threads()), names
        )
        blind, verdict = verdict, batchproof.prove(twin, rows, axes, rounding)
        if isinstance(verdict, Proven):
            notes.append(f"{blind.reason}; proven on a twin with random weights instead")
    if not isinstance(verdict, Proven):
        return verdict
    batched = [_with_axis(spec, axes[spec.name]) for spec in inputs]
    return _Choice(graph, batched, axes, verdict.output_axes, verdict.proof, sampler, notes)


def _check_against_reference(
    run: Callable[[Arrays], Arrays], reference: Reference, rows: list[Arrays], rounding: float
) -> None:
    """The engine alone must answer as ONNX Runtime does; fused kernels get 16 times the rounding of a reordered sum."""
    for row in rows:
        expected, got = reference(row), run(row)
        for name, want in expected.items():
            found = batchproof.differs(want, got[name], rounding * _REFERENCE_SLACK)
            # whole numbers behind a rounding or an argmax may flip on a tie: one in a hundred, not more
            tie = want.dtype.kind in "iub" and found.difference <= 0.01 * want.size
            if found.differs and not tie:
                raise WrongEngine(
                    f"OpenVINO answers differently from ONNX Runtime: output {name!r} is off by "
                    f"{found.difference:.3g}, bound {found.bound:.3g}"
                )


class WrongEngine(EngineError):
    """The engine is not right, batched or not; nothing is published."""


def _unbatched(
    model: onnx.ModelProto, inputs: list[TensorSpec], outputs: list[TensorSpec], reference: Reference,
    notes: list[str], reason: str,
) -> _Choice:  # fmt: skip
    graph = target.read_model(model)
    sampler = find_sampler(inputs, {}, reference)
    run = target.runner(target.compile_model(graph, 1, usable_threads()), [spec.name for spec in outputs])
    rows = [sampler.draw(seed, scale) for seed, scale in enumerate(SCALES)]
    _check_against_reference(run, reference, rows, rounding_bound(model))
    return _Choice(graph, inputs, {}, {}, BatchProof(False, reason), sampler, notes)


def _with_axis(spec: TensorSpec, axis: int) -> TensorSpec:
    shape = tuple(DYNAMIC if i == axis else d for i, d in enumerate(spec.shape))
    return msgspec.structs.replace(spec, shape=shape, batch_axis=axis)


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


def _measure(choice: _Choice) -> list[StreamTiming]:
    rows = _TIMING_ROWS if choice.axes else 1
    drawn = [choice.sampler.draw(seed) for seed in range(rows)]
    batch = {
        name: np.concatenate([row[name] for row in drawn], axis=choice.axes.get(name, 0))
        if rows > 1
        else drawn[0][name]
        for name in drawn[0]
    }
    return target.time_streams(choice.graph, batch, rows, usable_threads())


def _store(cache: repository.PlanCache, manifest: Manifest, blob: bytes) -> None:
    """Publish the plan, the manifest written last; a plan of the same key that came first is kept if it is whole."""
    try:
        with repository.staged_folder(cache.entry(manifest.key)) as staging:
            (staging / ENGINE_FILE).write_bytes(blob)
            (staging / repository.MANIFEST_FILE).write_bytes(encode(manifest))
    except FileExistsError:
        return
