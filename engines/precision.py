"""From the FP32 engine to the best one that is good enough: try coarser forms, judge each by its run, race, choose."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence

import msgspec
import openvino as ov

from engines.accuracy import budget_of, is_sure, shortfall
from engines.choice import Subject
from engines.clock import Clock
from engines.engine import Engine, batch_of, counts_decisions, judged_by, make_engine
from engines.errors import EngineError, ModelRefused
from engines.npz import DrawnSamples, Samples
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.float_layers import quantized_layers
from engines.reference import Reference
from engines.report import Accuracy, Candidate
from engines.samples import SCALES
from engines.spec import Spec
from engines.targets import openvino as target
from engines.targets.openvino_race import Pace, race
from engines.variants import Variant, int8_variants, usual_calibrators

__all__ = ["Improved", "improve"]

_NO_CALIBRATION = "INT8 was not offered: it needs calibration samples, and none came with the model"
_TRIAL_S = 10.0
"""For the answers of one engine that is tried; the one that is chosen answers all samples."""
_WORTH = 1.03
"""What a coarser engine has to be better by than a finer one: less is noise."""


class Tried(msgspec.Struct):
    """A variant that could be compiled, and what came of it."""

    variant: Variant
    compiled: ov.CompiledModel
    accuracy: Accuracy
    size_bytes: int
    reason: str = ""
    pace: Pace | None = None

    @property
    def passed(self) -> bool:
        return not self.reason


class Improved(msgspec.Struct):
    """The engine that will serve, all that were tried, and what is to be said of the search."""

    engine: Engine
    chosen: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]


def improve(
    subject: Subject, base: Engine, samples: Sequence[Samples], calibration: Samples | None, spec: Spec, threads: int,
    clock: Clock,
) -> Improved:  # fmt: skip
    """The best engine by the objective that loses no more than the budget; `base`, the FP32 one, where none is better.

    Raises ModelRefused where one precision was asked for and no engine of it is good enough, with the figure.
    """
    shop = _Shop(subject, base, samples, spec)
    _require_calibration(spec, calibration)
    if calibration is not None and spec.precision != "fp32":
        clock.begin("quantize")
        shop.try_all(_int8(subject, calibration, spec, shop))
    elif spec.precision == "auto":
        shop.notes.append(_NO_CALIBRATION)
    if len(shop.tried) > 1:
        clock.begin("race")
        shop.race()
    for tried in shop.by_merit():
        if tried.variant.precision == "fp32":
            break
        try:
            engine = _made(subject, tried.variant, samples, spec, threads, clock)
        except EngineError as refused:
            tried.reason = str(refused)
            continue
        return Improved(engine, tried.variant.name, shop.candidates(), tuple(shop.notes))
    if spec.precision not in ("auto", "fp32"):
        raise ModelRefused(f"precision {spec.precision!r}: {shop.why_none()}")
    return Improved(base, "fp32", shop.candidates(), tuple(shop.notes))


def _require_calibration(spec: Spec, calibration: Samples | None) -> None:
    if spec.precision == "int8" and calibration is None:
        raise ModelRefused("precision 'int8' needs calibration samples: send `calibration`, an .npz of inputs")


def _int8(subject: Subject, calibration: Samples, spec: Spec, shop: _Shop) -> Iterator[Variant]:
    """With ranges by one calibrator; by the next where none of that was good enough."""
    for calibrator in usual_calibrators(spec.calibrator):
        for full_range in (False, True):
            try:
                yield from int8_variants(subject.model, calibration, calibrator, full_range=full_range)
            except ModelRefused as refused:
                shop.notes.append(f"INT8 was not possible: {refused}")
                return
        if any(one.passed for one in shop.tried[1:]):
            return


def _made(
    subject: Subject, variant: Variant, samples: Sequence[Samples], spec: Spec, threads: int, clock: Clock
) -> Engine:
    """The engine of a variant, with every check that the FP32 one had; its own meaning is what it is held against."""
    coarse = subject._replace(model=variant.model, reference=Reference(variant.model), ideal=subject.reference)
    return make_engine(coarse, samples, spec, threads, clock, variant.precision)


class _Shop:
    """What was tried so far. The FP32 engine is the first."""

    def __init__(self, subject: Subject, base: Engine, samples: Sequence[Samples], spec: Spec) -> None:
        self._subject, self._base, self._spec = subject, base, spec
        self._judges = samples[0] if samples else DrawnSamples(base.choice.sampler, len(SCALES))
        self._config = base.timings[0].streams, base.timings[0].threads
        served = target.reimported(base.blob, *self._config)
        first, alone = Variant("fp32", "fp32", subject.model), base.speeds[0]
        pace = Pace(alone.latency_us, base.speeds[-1].rows_per_s)
        self.tried = [Tried(first, served, base.accuracy, len(base.blob), pace=pace)]
        self.notes: list[str] = []
        self._failed: list[Candidate] = []

    def try_all(self, variants: Iterator[Variant]) -> None:
        """Each in turn, as long as there is time; the first is tried anyway."""
        started = time.monotonic()
        for variant in variants:
            self.attempt(variant)
            if time.monotonic() - started > self._spec.time_limit_s:
                self.notes.append(f"no more variants were tried after {self._spec.time_limit_s:g} s")
                break

    def attempt(self, variant: Variant) -> Tried | None:
        """Compile a variant and judge its answers; None, and a candidate that failed, where it has none."""
        choice = self._base.choice
        try:
            model = with_batch_axes(variant.model, choice.axes) if choice.axes else variant.model
            compiled = target.compile_model(target.read_model(model), *self._config)
            run = target.runner(compiled, self._subject.names)
            accuracy = judged_by(self._subject.reference, run, choice, self._judges, self._spec, _TRIAL_S)
            tried = Tried(variant, compiled, accuracy, len(target.export(compiled)))
        except EngineError as refused:
            self._failed.append(_failed(variant, str(refused)))
            return None
        budget = budget_of(self._spec, accuracy)
        tried.reason = shortfall(accuracy, budget, by_decisions=counts_decisions(self._spec, accuracy))
        self.tried.append(tried)
        if tried.passed and not is_sure(accuracy, budget):
            self._note_unsure(accuracy, budget)
        return tried

    def _note_unsure(self, accuracy: Accuracy, budget: float) -> None:
        reach = f"up to {accuracy.interval[1]:.3g}" if accuracy.interval else "any size"
        said = (
            f"{accuracy.samples} samples are too few to tell a loss of {budget:.3g} from chance: with 95 % it may be "
            f"{reach}"
        )
        if said not in self.notes:
            self.notes.append(said)

    def race(self) -> None:
        """Time FP32 and all that passed, side by side."""
        runners = [one for one in self.tried if one.passed]
        choice = self._base.choice
        paces = race([one.compiled for one in runners], functools.partial(batch_of, choice), batched=bool(choice.axes))
        for one, pace in zip(runners, paces, strict=True):
            one.pace = pace

    def cost(self, tried: Tried) -> float:
        """By the objective, lower is better."""
        if self._spec.objective == "size":
            return float(tried.size_bytes)
        if tried.pace is None:
            return math.inf
        return tried.pace.latency_us if self._spec.objective == "latency" else 1e6 / tried.pace.rows_per_s

    def by_merit(self) -> list[Tried]:
        """Those that passed and are what was asked for, the best first; FP32 among them where that may be chosen."""
        wanted = self._spec.precision
        found = [one for one in self.tried if one.passed and wanted in ("auto", one.variant.precision)]
        handicap = {id(one): 1.0 if one.variant.precision == "fp32" else _WORTH for one in found}
        return sorted(found, key=lambda one: self.cost(one) * handicap[id(one)])

    def why_none(self) -> str:
        """Of the variants that were asked for, why the last one is not good enough."""
        wanted = [one.reason for one in self.tried if one.variant.precision == self._spec.precision]
        return (wanted or [one.reason for one in self._failed] or self.notes or ["there is no such engine"])[0]

    def candidates(self) -> tuple[Candidate, ...]:
        """For the report."""
        front = self._front()
        return (*(_candidate(one, on_front=one in front) for one in self.tried), *self._failed)

    def _front(self) -> list[Tried]:
        passed = [one for one in self.tried if one.passed and one.accuracy.loss is not None]

        def beats(a: Tried, b: Tried) -> bool:
            pairs = [(a.accuracy.loss or 0.0, b.accuracy.loss or 0.0), (self.cost(a), self.cost(b))]
            return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

        return [one for one in passed if not any(beats(other, one) for other in passed)]


def _candidate(tried: Tried, *, on_front: bool) -> Candidate:
    accuracy, variant, pace = tried.accuracy, tried.variant, tried.pace
    return Candidate(
        name=variant.name, precision=variant.precision, target="openvino", judged_by="OpenVINO",
        metric=accuracy.metric, value=accuracy.value, loss=accuracy.loss, interval=accuracy.interval,
        decisions_changed=accuracy.decisions_changed, samples=accuracy.samples,
        latency_us=pace.latency_us if pace else None, rows_per_s=pace.rows_per_s if pace else None,
        size_bytes=tried.size_bytes, passed=tried.passed, reason=tried.reason, on_front=on_front,
        int8_layers=len(quantized_layers(variant.model)), float_layers=tuple(sorted(variant.kept)),
    )  # fmt: skip


def _failed(variant: Variant, reason: str) -> Candidate:
    return Candidate(
        name=variant.name, precision=variant.precision, target="openvino", judged_by="OpenVINO", metric="", value=None,
        loss=None, interval=None, decisions_changed=None, samples=0, latency_us=None, rows_per_s=None, size_bytes=0,
        passed=False, reason=reason,
    )  # fmt: skip
