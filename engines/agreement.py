"""Whether the engine answers as the reference: float samples, whole numbers of every size, ill-conditioned models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import onnx

from engines import batchproof
from engines.batchproof import Blind, Proven, Refuted, is_float
from engines.errors import EngineError
from engines.frontend.ranges import takes_sizes_from_values
from engines.guarded import Guards, fired, first_difference, is_integer
from engines.passes.calm_softmax import saturating_inputs, with_outputs, with_scaled_values
from engines.passes.random_weights import with_moved_weights, with_random_weights
from engines.reference import Arrays, Reference
from engines.samples import OTHER_ROWS, Sampler
from engines.tensor import TensorSpec, datatype
from engines.verify import is_quantized

__all__ = ["WrongEngine", "agree_at", "check_agreement", "integer_bits", "prove_at", "twin_of"]

Run = Callable[[Arrays], Arrays]
_CALM = 4.0
_BITS = (63, 31, 30, 24, 15)
_NARROW_BITS = 31
_TIGHT = 2.5e-4
"""Of the largest answer: what no engine in FP32 has to exceed, unless the model makes much of rounding."""
_MOVES = 256.0
"""How many times what one unit in the last place of every weight does: kernels approximate exp and tanh too."""


class WrongEngine(EngineError):
    """The engine is not right, batched or not; nothing is published. `row` is a sample that shows it, if one does."""

    def __init__(self, reason: str, row: Arrays) -> None:
        super().__init__(reason)
        self.row = row


def check_agreement(
    run: Run, reference: Run, rows: Sequence[Arrays], model: onnx.ModelProto, run_of: Callable[[onnx.ModelProto], Run],
    guards: Guards,
) -> bool:  # fmt: skip
    """Raise WrongEngine unless the engine answers as the reference. False: the model's own answers are only rounding.

    An engine may differ by what rounding explains, and that is measured: by how far the model's answers move with its
    weights and inputs, each by one unit in the last place. A model whose answers move beyond the bound is judged by a
    twin with random weights, which has to agree. Behind a rounding to 8 bits, answers jump: the bound itself holds.
    """
    tight = guards.bound if is_quantized(model) else min(_TIGHT, guards.bound)
    if not guards.first_difference(run, reference, rows, tight):
        guards.allowed = max(guards.allowed, tight)
        return True
    moved = Reference(with_moved_weights(model))
    allowed = min(guards.bound, max(tight, _MOVES * _largest_move(moved, reference, rows)))
    found = guards.first_difference(run, reference, rows, allowed)
    if not found:
        guards.allowed = max(guards.allowed, allowed)
        return True
    if not first_difference(moved, reference, rows, guards.bound):
        raise WrongEngine(found, guards.wrong_row)
    twin = twin_of(model, rows)
    if first_difference(run_of(twin), Reference(twin), rows, guards.bound):
        raise WrongEngine(found, guards.wrong_row)
    return False


def _largest_move(moved: Run, reference: Run, rows: Sequence[Arrays]) -> float:
    """How far answers move, as a share of the largest one, with weights and inputs; what is not finite is left out."""
    most = 0.0
    for row in rows:
        now = moved({name: _moved(array) for name, array in row.items()})
        for name, want in reference(row).items():
            if not is_float(want) or want.shape != now[name].shape:
                continue
            a, b = want.astype(np.float64), now[name].astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            largest = float(np.abs(a[finite]).max(initial=0.0))
            if largest:
                most = max(most, float(np.abs(a[finite] - b[finite]).max()) / largest)
    return most


def _moved(array: np.ndarray) -> np.ndarray:
    """By up to one unit in the last place; halves and whole numbers as they are."""
    if array.dtype not in (np.float32, np.float64):
        return array
    step = np.random.default_rng(0).uniform(-1, 1, array.shape) * np.finfo(array.dtype).eps
    return np.asarray(array * (1 + step), array.dtype)


def agree_at(
    others: Sequence[Sampler], run: Run, reference: Run, model: onnx.ModelProto,
    run_of: Callable[[onnx.ModelProto], Run], guards: Guards,
) -> None:  # fmt: skip
    """Raise WrongEngine unless the engine answers as the reference at these sizes of the variable dimensions too."""
    for sampler in others:
        try:
            check_agreement(run, reference, sampler.rows(OTHER_ROWS), model, run_of, guards)
        except WrongEngine as wrong:
            raise WrongEngine(f"{_at(sampler)}: {wrong}", wrong.row) from wrong


def prove_at(
    others: Sequence[Sampler], run: Run, axes: Mapping[str, int], rounding: float, proven: Proven
) -> Proven | Refuted:
    """What was proven at one size of the variable dimensions, held against others (sequence lengths, image sizes).

    Where every sample answers alike (a length that leaves nothing to see) a size proves nothing, and is said to.
    """
    for sampler in others:
        found = batchproof.prove_again(run, sampler.rows(OTHER_ROWS), axes, rounding, proven, _at(sampler))
        if isinstance(found, Refuted):
            return found
        if isinstance(found, Blind):
            proof = proven.proof
            found = Proven(msgspec.structs.replace(proof, checks=(*proof.checks, found.reason)), proven.output_axes)
        proven = found
    return proven


def _at(sampler: Sampler) -> str:
    return f"variable dimensions of {sampler.words}"


def twin_of(model: onnx.ModelProto, rows: Sequence[Arrays]) -> onnx.ModelProto:
    """The model with random weights, its saturating nodes kept in range for these rows."""
    twin = with_random_weights(model)
    names = saturating_inputs(twin)
    if not names:
        return twin
    observed = Reference(with_outputs(twin, names))
    peaks: dict[str, float] = dict.fromkeys(names, 0.0)
    kinds: dict[str, np.dtype] = {}
    for row in rows:
        for name, value in observed(row).items():
            if name in peaks:
                kinds[name] = value.dtype
                finite = np.abs(value[np.isfinite(value)].astype(np.float64))
                peaks[name] = max(peaks[name], float(finite.max(initial=0.0)))
    factors = {name: np.array(_CALM / peak, kinds[name]) for name, peak in peaks.items() if peak > _CALM}
    return with_scaled_values(twin, factors)


def integer_bits(
    run: Run, reference: Run, model: onnx.ModelProto, inputs: Sequence[TensorSpec], sampler: Sampler
) -> int:
    """Magnitudes below 2 to this power are computed as the reference computes them; 63 = all.

    The CPU engine cuts 64-bit integers to 32 bits without a word. Values that the reference refuses (an index beyond
    its table) prove nothing and leave 31. Raises WrongEngine where even small numbers come out wrong.
    """
    if not any(is_integer(spec) for spec in inputs):
        return 63
    if takes_sizes_from_values(model):
        return _NARROW_BITS  # a large number could ask for a tensor of its size
    wrong = unknown = ""
    for bits in _BITS:
        verdict = _integers_agree(run, reference, inputs, sampler, bits)
        if verdict is None:
            unknown = "the reference refused them"
        elif verdict:
            wrong = wrong or verdict
        else:
            return min(bits, _NARROW_BITS) if unknown else bits
    if wrong and not unknown:
        raise WrongEngine(f"{wrong}, for whole numbers below 2**{_BITS[-1]}", sampler.draw(0))
    return _NARROW_BITS


def _integers_agree(run: Run, reference: Run, inputs: Sequence[TensorSpec], sampler: Sampler, bits: int) -> str | None:
    """Nothing where they agree, what differs, or None where one of them raises or a guard refuses."""
    rng = np.random.default_rng(bits)
    for seed in range(3):
        row = sampler.draw(seed)
        for spec in inputs:
            if is_integer(spec):
                limits = np.iinfo(datatype(spec.datatype).numpy)
                low, high = max(limits.min, -(2**bits)), min(limits.max, 2**bits - 1)
                drawn = rng.integers(low, high, row[spec.name].shape, limits.dtype, endpoint=True)
                row[spec.name] = np.asarray(drawn)
        try:
            expected = reference(row)
            got = run(row)
        except Exception:
            return None
        if fired(got):
            return None
        for name, want in expected.items():
            found = batchproof.differs(want, got[name], 1e-4)
            if found.differs:
                return f"OpenVINO answers differently from ONNX Runtime: output {name!r} is off by {found.difference:g}"
    return ""
