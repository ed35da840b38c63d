"""From the FP32 engine to the best one that is good enough: try coarser forms, judge each by its run, race, choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from engines.agreement import WrongEngine
from engines.choice import Subject
from engines.clock import Clock, TimeLimit
from engines.engine import Engine, make_engine
from engines.errors import ModelRefused
from engines.hardware import has_vnni
from engines.mixed import try_mixed
from engines.npz import Samples
from engines.reference import Reference
from engines.report import Candidate
from engines.spec import Spec
from engines.tryouts import Tryouts, said
from engines.variants import (
    Variant,
    half_emulated,
    half_variant,
    int8_variants,
    measured,
    pruned_variants,
    usual_calibrators,
    with_projections,
)

__all__ = ["Improved", "improve"]

_NO_CALIBRATION = "INT8 was not offered: it needs calibration samples, and none came with the model"
_LEAST_SEARCH_S = 10.0
"""For the search, where quantizing took all the time there was and that was no less."""
_SEARCHING = 0.5
"""Share of the time limit that is the search's, while all of INT8 loses too much."""


class Improved(msgspec.Struct):
    """The engine that will serve, all that were tried, and what is to be said of the search."""

    engine: Engine
    chosen: str
    tryouts: Tryouts

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.tryouts.candidates()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.tryouts.notes)


def improve(
    subject: Subject, base: Engine, samples: Sequence[Samples], calibration: Samples | None, spec: Spec, threads: int,
    clock: Clock, keep: Callable[[Improved], None] = lambda first: None,
) -> Improved:  # fmt: skip
    """The best engine by the objective that loses no more than the budget; `base`, the FP32 one, where none is better.

    `keep` is given that one first, where it may be the best and others are tried. Raises ModelRefused where one
    precision was asked for and no engine of it is good enough, with the figure.
    """
    tryouts = Tryouts(subject, base, samples, spec)
    if _may_replace(spec, has_calibration=calibration is not None):
        keep(Improved(base, "fp32", tryouts))
    _try_others(tryouts, subject, calibration, spec, clock)
    if len(tryouts.tried) > 1:
        clock.begin("race")
        tryouts.race()
    found = _first_that_holds(tryouts, subject, base, samples, spec, threads, clock)
    if found is None and _search(tryouts, subject, spec, 0.0, clock):  # INT8 failed at the last check
        tryouts.race()
        found = _first_that_holds(tryouts, subject, base, samples, spec, threads, clock)
    if found is not None:
        tryouts.note_unsure(found[1].accuracy)
        return Improved(found[1], found[0].name, tryouts)
    if spec.precision not in ("auto", "fp32"):
        raise ModelRefused(f"precision {spec.precision!r}: {tryouts.why_none()}")
    return Improved(base, "fp32", tryouts)


def _first_that_holds(
    tryouts: Tryouts, subject: Subject, base: Engine, samples: Sequence[Samples], spec: Spec, threads: int, clock: Clock
) -> tuple[Variant, Engine] | None:
    """The best that passes every check that FP32 passed; None where FP32 is better than what is left."""
    for tried in tryouts.by_merit():
        if tried is tryouts.tried[0]:
            return None
        try:
            engine = _made(subject, tried.variant, samples, spec, threads, clock)
        except Exception as error:  # FP32 is there, and proven
            tried.reason, tried.is_wrong = said(error), isinstance(error, WrongEngine)
            continue
        if spec.precision == "auto" and base.choice.axes and not engine.choice.axes:
            tried.reason = f"its requests could not share a batch, as those of FP32 do: {engine.choice.proof.reason}"
            continue
        return tried.variant, engine
    return None


def _may_replace(spec: Spec, *, has_calibration: bool) -> bool:
    """Whether others are tried, and FP32 serves where none of them is better."""
    if spec.precision == "auto":
        return has_calibration or spec.objective == "size"
    return spec.precision == "fp32" and has_calibration and spec.sparsity is not None


def _try_others(tryouts: Tryouts, subject: Subject, calibration: Samples | None, spec: Spec, clock: Clock) -> None:
    limit = TimeLimit(spec.time_limit_s)
    if spec.precision == "fp16" or (spec.precision == "auto" and spec.objective == "size"):
        clock.begin("halve")
        _halves(tryouts, subject, limit, elsewhere=bool(spec.gpu_targets))
    source = tryouts.tried[0].variant
    if calibration is not None and spec.sparsity is not None:
        clock.begin("prune")
        source = _pruned(tryouts, subject, calibration, spec, limit) or source
    if calibration is not None and spec.precision in ("auto", "int8"):
        clock.begin("quantize")
        source = _split(tryouts, source)
        variants = _int8(source, calibration, spec, tryouts)
        is_fixed = spec.precision == "int8"
        reserve_s = 0.0 if is_fixed else _SEARCHING * limit.seconds
        for variant in _in_time(variants, limit, tryouts, one_at_least=is_fixed, reserve_s=reserve_s):
            tryouts.attempt(variant)
        _search(tryouts, subject, spec, limit.left_s, clock)
    elif spec.precision == "auto":
        tryouts.notes.append(_NO_CALIBRATION)


def _in_time(
    variants: Iterator[Variant], limit: TimeLimit, tryouts: Tryouts, *, one_at_least: bool = False,
    reserve_s: float = 0.0,
) -> Iterator[Variant]:  # fmt: skip
    """Those that there is time to make; the first anyway, where nothing was tried before or `one_at_least`.

    `reserve_s` of the time is left for the search, unless some INT8 is good enough and none will be needed.
    """
    is_due = one_at_least or len(tryouts.candidates()) == 1
    while is_due or limit.left_s > (0.0 if tryouts.has_int8() else reserve_s):
        is_due = False
        try:
            variant = next(variants)
        except StopIteration:
            return
        yield variant
    note = f"no more variants were tried after {limit.seconds:g} s"
    if not limit.is_over:
        note = f"no more variants were tried after {limit.seconds - reserve_s:g} s: the others are for the search"
    tryouts.notes.extend([note] if note not in tryouts.notes else [])


def _split(tryouts: Tryouts, source: Variant) -> Variant:
    try:
        split = with_projections(source)
    except Exception as error:
        tryouts.notes.append(f"recurrent layers were left as they are: {said(error)}")
        return source
    tryouts.notes.extend([f"INT8: {split.note}"] if split.note else [])
    return split


def _halves(tryouts: Tryouts, subject: Subject, limit: TimeLimit, *, elsewhere: bool) -> None:
    """FP16 as this CPU has it, where it is storage, and as a target computes that has arithmetic of it, unless it is
    judged `elsewhere`.
    """
    tryouts.attempt(half_variant(subject.model))
    if elsewhere:
        return
    if limit.is_over:
        tryouts.notes.append(f"FP16 as other targets compute it was not judged: {limit.seconds:g} s were over")
        return
    try:
        tryouts.note_elsewhere(tryouts.emulate(half_emulated(subject.model, tryouts.judges)), "tensorrt")
    except Exception as error:
        tryouts.notes.append(f"FP16 as other targets compute it could not be judged: {said(error)}")


def _search(tryouts: Tryouts, subject: Subject, spec: Spec, time_limit_s: float, clock: Clock) -> bool:
    """Over one precision per layer, from the INT8 engine that loses least, where all of them lose too much, and once.

    Whether it found one.
    """
    int8 = [one for one in tryouts.tried if one.variant.precision == "int8" and not one.is_wrong]
    if spec.precision != "auto" or not int8 or tryouts.has_int8() or "search" in clock.stages_s:
        return False
    clock.begin("search")
    least_s = min(_LEAST_SEARCH_S, spec.time_limit_s)
    start = next(filter(tryouts.is_true, sorted(int8, key=tryouts.loss)), None)
    if start is None:
        return False
    try:
        try_mixed(tryouts, start, subject, spec, max(time_limit_s, least_s))
    except Exception as error:
        tryouts.notes.append(said(error))
        return False
    return True


def _pruned(tryouts: Tryouts, subject: Subject, calibration: Samples, spec: Spec, limit: TimeLimit) -> Variant | None:
    """The most of it that holds the budget; None, and a note, where nothing does, or where a CPU alone is asked for
    and gains nothing.
    """
    assert spec.sparsity is not None
    try:
        for variant in _in_time(pruned_variants(subject.model, calibration, spec.sparsity), limit, tryouts):
            tried = tryouts.attempt(variant)
            if tried is None or not tried.passed:
                continue
            if spec.gpu_targets or tryouts.pays(tried):
                return variant
            tryouts.notes.append(f"nothing was pruned: sparsity {spec.sparsity!r} holds the budget, but {tried.reason}")
            return None
    except Exception as error:
        tryouts.notes.append(f"nothing was pruned: {said(error)}")
        return None
    tryouts.notes.append(f"nothing was pruned: with sparsity {spec.sparsity!r} the budget did not hold")
    return None


def _int8(of: Variant, calibration: Samples, spec: Spec, tryouts: Tryouts) -> Iterator[Variant]:
    """With ranges by the first calibrators; by the next where none of that was good enough.

    Where the CPU has VNNI, weights of 7 bits are only worth a try if what it made of 8 was wrong.
    """
    first, second = (8, 7) if has_vnni() else (7, 8)
    for calibrators in usual_calibrators(spec.calibrator):
        try:
            quantizer = measured(of, calibration, calibrators)
            for calibrator in calibrators:
                yield from int8_variants(of, quantizer, calibrator, first)
                if second == 8 or tryouts.has_wrong(f"int8 {calibrator}"):
                    yield from int8_variants(of, quantizer, calibrator, second)
        except Exception as error:
            tryouts.notes.append(f"INT8 was not possible: {said(error)}")
            return
        if tryouts.has_int8():
            return


def _made(
    subject: Subject, variant: Variant, samples: Sequence[Samples], spec: Spec, threads: int, clock: Clock
) -> Engine:
    """The engine of a variant, with every check that the FP32 one had; its own meaning is what it is held against."""
    coarse = subject._replace(model=variant.model, reference=Reference(variant.model), ideal=subject.reference)
    return make_engine(coarse, samples, spec, threads, clock, variant.precision)
