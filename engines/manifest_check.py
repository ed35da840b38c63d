"""Whether a manifest can be true: who wrote it may have been taken over, and the server acts on what it says.

Whether it fits its engine is found out when that is loaded and run; here, that doing so is harmless.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from engines.errors import PlanInvalid
from engines.manifest import Manifest
from engines.tensor import BY_NAME, DYNAMIC, ShapeRange, TensorSpec

__all__ = ["check_manifest"]

_MOST_TENSORS = 4096
_MOST_SIZE = 2**40
_MOST_SAMPLE_BYTES = 2**31
_MOST_BATCH = 65536
_MOST_BITS = 63
_MOST_TEXT_CHARS = 10_000
_MOST_GUARDS, _MOST_NOTES = 65536, 100
_MOST_INTEGER = 2**64
_MOST_GPUS, _MOST_SM = 64, 1000


def check_manifest(manifest: Manifest, most_threads: int) -> None:
    """Raise PlanInvalid with the first thing that cannot be so. An engine has at most `most_threads` threads."""
    wrong = next(_wrong(manifest, most_threads), None)
    if wrong is not None:
        raise PlanInvalid(f"the manifest says what cannot be: {wrong}")


def _wrong(manifest: Manifest, most_threads: int) -> Iterator[str]:
    if not 1 <= manifest.threads <= most_threads:
        yield f"{manifest.threads} threads; expected 1 to {most_threads}"
    if not 1 <= manifest.streams <= manifest.threads:
        yield f"{manifest.streams} streams; expected 1 to {manifest.threads}, the threads"
    if not 0 <= manifest.max_batch <= _MOST_BATCH:
        yield f"max_batch {manifest.max_batch}; expected 0 to {_MOST_BATCH}"
    if not 0 <= manifest.enough_rows <= _MOST_BATCH:
        yield f"enough_rows {manifest.enough_rows}; expected 0 to {_MOST_BATCH}"
    if not manifest.engine.file or "/" in manifest.engine.file or "\0" in manifest.engine.file:
        yield "an engine that is no file beside it"
    if manifest.engine.size_bytes < 0 or manifest.source.size_bytes < 0:
        yield "a file of negative size"
    yield from _wrong_plans(manifest)
    yield from _wrong_tensors("input", manifest.inputs)
    yield from _wrong_tensors("output", manifest.outputs)
    yield from _wrong_rows(manifest)
    yield from _wrong_samples(manifest)
    yield from _wrong_texts(manifest)
    if not _are_magnitudes(_numbers(manifest)):
        yield "a measurement that is negative or no number"


def _wrong_plans(manifest: Manifest) -> Iterator[str]:
    plans = manifest.plans
    if len({plan.file for plan in plans}) < len(plans):
        yield "two plans in one file"
    for plan in plans:
        if plan.size_bytes < 0 or len(plan.sms) > _MOST_GPUS or not all(0 < sm < _MOST_SM for sm in plan.sms):
            yield f"a plan of {plan.size_bytes} bytes for GPUs {list(plan.sms)[:32]}"
        if len(plan.version) > _MOST_TEXT_CHARS or len(plan.profiles) > _MOST_GPUS or len(plan.plugins) > _MOST_GPUS:
            yield "a plan with more profiles or plugins than there can be"
        if plan.profile_sets < 1 or len(plan.profiles) % plan.profile_sets:
            yield f"{len(plan.profiles)} profiles in {plan.profile_sets} sets"
        if not plan.file or "/" in plan.file or "\0" in plan.file:
            yield "a plan that is no file beside it"
        if not all(_is_range(sizes) for profile in plan.profiles for sizes in profile.values()):
            yield "a plan with a profile that is no range of sizes"


def _is_range(sizes: ShapeRange) -> bool:
    low, best, high = sizes
    return len(low) == len(best) == len(high) and all(
        0 <= a <= b <= c <= _MOST_SIZE for a, b, c in zip(low, best, high, strict=True)
    )


def _wrong_tensors(kind: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    names = [spec.name for spec in specs]
    if not 1 <= len(specs) <= _MOST_TENSORS:
        yield f"{len(specs)} {kind}s; expected 1 to {_MOST_TENSORS}"
    if len(set(names)) < len(names) or not all(names):
        yield f"{kind}s without names of their own"
    for spec in specs:
        for wrong in _wrong_tensor(spec):
            yield f"{kind} {spec.name[:100]!r} with {wrong}"


def _wrong_tensor(spec: TensorSpec) -> Iterator[str]:
    kind, rank = BY_NAME.get(spec.datatype), len(spec.shape)
    if kind is None or not kind.item_bytes:
        yield f"datatype {spec.datatype[:100]!r}"
    if any(not (size == DYNAMIC or 0 <= size <= _MOST_SIZE) for size in spec.shape):
        yield f"shape {list(spec.shape)[:32]}"
    if spec.batch_axis is not None and not 0 <= spec.batch_axis < rank:
        yield f"batch axis {spec.batch_axis} of {rank}"
    if not 0 <= spec.integer_bits <= _MOST_BITS:
        yield f"{spec.integer_bits} bits"
    if not _are_magnitudes([spec.largest]):
        yield f"a largest magnitude of {spec.largest}"
    if spec.value_range is not None:
        low, high = spec.value_range
        if not -_MOST_INTEGER <= low <= high <= _MOST_INTEGER:
            yield f"values from {low} to {high}"


def _wrong_rows(manifest: Manifest) -> Iterator[str]:
    proof = manifest.proof
    axes = [spec.batch_axis for spec in manifest.inputs]
    if proof.batchable and all(axis is None for axis in axes):
        yield "batches of inputs that have no batch axis"
    if not 1 <= proof.rows <= _MOST_BATCH:
        yield f"batches of {proof.rows} rows; expected 1 to {_MOST_BATCH}"


def _wrong_samples(manifest: Manifest) -> Iterator[str]:
    total = 0
    for spec in manifest.inputs:
        shape = manifest.sample_shapes.get(spec.name)
        kind = BY_NAME.get(spec.datatype)
        if shape is None or kind is None or not _fits(spec, shape):
            yield f"input {spec.name[:100]!r} with no sample of its shape"
        else:
            total += math.prod(shape) * kind.item_bytes
    if total > _MOST_SAMPLE_BYTES:
        yield f"samples of {total} bytes; expected at most {_MOST_SAMPLE_BYTES}"


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        0 <= size <= _MOST_SIZE and (want in (DYNAMIC, size) or axis == spec.batch_axis)
        for axis, (want, size) in enumerate(zip(spec.shape, shape, strict=True))
    )


def _wrong_texts(manifest: Manifest) -> Iterator[str]:
    guards = [manifest.guards, *(plan.guards for plan in manifest.plans)]
    for name, texts, most in [
        *(("guards", one, _MOST_GUARDS) for one in guards),
        ("notes", manifest.notes, _MOST_NOTES),
    ]:
        if len(texts) > most:
            yield f"{len(texts)} {name}; expected at most {most}"
    names = (spec.name for spec in (*manifest.inputs, *manifest.outputs))
    single = (manifest.proof.reason, manifest.precision, manifest.target, manifest.hardware, manifest.created)
    if any(len(text) > _MOST_TEXT_CHARS for text in (*itertools.chain(*guards), *manifest.notes, *names, *single)):
        yield f"a text of more than {_MOST_TEXT_CHARS} characters"


def _numbers(manifest: Manifest) -> Iterator[float]:
    proof = manifest.proof
    yield from (manifest.build_s, proof.full_batch_s)
    for timing in manifest.stream_timings:
        yield from (timing.streams, timing.threads, timing.batch_rows, timing.rows_per_s)


def _are_magnitudes(numbers: Iterable[float]) -> bool:
    return all(math.isfinite(number) and number >= 0 for number in numbers)
