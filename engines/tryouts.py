"""What was tried in one build: coarser engines beside the FP32 one, each judged by its answers and raced for speed."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import openvino as ov

from engines.accuracy import assess, budget_of, is_sure, shortfall
from engines.agreement import WrongEngine
from engines.choice import Subject
from engines.engine import COARSE, Engine, batch_of, counts_decisions, judged_by
from engines.errors import EngineError, ModelRefused
from engines.guarded import Guards, first_difference
from engines.npz import DrawnSamples, Sample, Samples, SomeSamples
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.float_layers import quantized_layers
from engines.reference import Reference
from engines.report import Accuracy, Candidate
from engines.samples import SCALES
from engines.search import Outcome, pareto_front, ranked
from engines.spec import Spec
from engines.targets import openvino as target
from engines.targets.openvino_race import Pace, race
from engines.variants import Emulated, Variant
from engines.verify import agreement_bound

__all__ = ["Tried", "Tryouts", "said"]

_TRIAL_S = 10.0
"""For the answers of one engine that is tried; the one that is chosen answers all samples."""
_GLIMPSE_S, _GLIMPSE_SAMPLES_S, _FEWEST = 0.2, 1.0, 32
"""For one of many engines: seconds of timing, seconds of FP32 that its samples take, and how many these are at least.
"""
_MANY, _FAR = 4, 2
"""So many times as few samples are worth a look at a few first, and what loses so many budgets there is refused."""
_ROWS_FOR_TRUTH = 16
_RACE_S, _PAYING_S = 3.0, 1.0
_SLOWEST = 1e-3
_WORTH = 1.03
"""What an engine has to be better by for that to count: less is noise."""


class Tried(msgspec.Struct):
    """A variant that could be compiled, and what came of it."""

    variant: Variant
    compiled: ov.CompiledModel | None
    """None where it was only glimpsed at: each holds its own weights."""
    accuracy: Accuracy
    size_bytes: int
    guards: Guards
    reason: str = ""
    pace: Pace | None = None
    is_wrong: bool = False
    """Its proof showed that the runtime means something else by its graph: nothing is to be made of it."""

    @property
    def passed(self) -> bool:
        return not self.reason


class Tryouts:
    """What was tried so far. The FP32 engine is the first."""

    def __init__(self, subject: Subject, base: Engine, samples: Sequence[Samples], spec: Spec) -> None:
        self._subject, self._base, self._spec = subject, base, spec
        self.judges = samples[0] if samples else DrawnSamples(base.choice.sampler, len(SCALES))
        self._config = base.timings[0].streams, base.timings[0].threads
        served = target.reimported(base.blob, *self._config)
        first, alone = Variant("fp32", "fp32", subject.model), base.speeds[0]
        pace = Pace(alone.latency_us, base.speeds[-1].rows_per_s)
        self.tried = [Tried(first, served, base.accuracy, len(base.blob), base.choice.guards, pace=pace)]
        self.notes: list[str] = []
        self.variants: list[Variant] = []
        """All that were made, whatever came of them here."""
        self._failed: list[Candidate] = []
        self._glimpsed: list[Candidate] = []
        self._elsewhere: list[Candidate] = []
        self._first_pace = pace

    def attempt(self, variant: Variant) -> Tried | None:
        """Compile a variant and judge its answers; None, and a candidate that failed, where it has none."""
        self.variants.append(variant)
        try:
            tried = self._judged(variant)
            if tried.passed:  # it is expensive, and one that loses too much serves nobody
                self._require_true(tried)
        except Exception as error:  # whatever the runtimes think of it, this one is no candidate, and others may be
            self._failed.append(_failed(variant, said(error)))
            return None
        self.tried.append(tried)
        if not tried.passed:
            tried.compiled = None
        return tried

    def glimpse(self, variant: Variant, few: Samples) -> Tried:
        """The same for one of many: judged by few samples, its latency compared with that of FP32, and not kept.

        Raises ModelRefused where it cannot be compiled or run.
        """
        try:
            tried, first = self._made(variant), self.tried[0]
            self._judge(tried, few)
        except Exception as error:
            raise ModelRefused(said(error)) from error
        assert tried.compiled is not None
        assert first.compiled is not None
        batch = functools.partial(batch_of, self._base.choice)
        of_first, own = race([first.compiled, tried.compiled], batch, batched=False, budget_s=_GLIMPSE_S)
        ratio, usual = own.latency_us / of_first.latency_us, self._first_pace
        tried.pace = Pace(usual.latency_us * ratio, usual.rows_per_s / ratio)
        tried.compiled = None
        self._glimpsed.append(msgspec.structs.replace(_candidate(tried, on_front=False), trial=True))
        return tried

    def emulate(self, made: Emulated) -> Candidate:
        """Judge what another target would answer, in ONNX Runtime with graph optimizations off; not timed here."""
        accuracy = assess(
            Reference(made.model), self._subject.reference, self.judges, self._spec.metric, tolerance=COARSE,
            budget_s=_TRIAL_S, output=self._spec.output,
        )  # fmt: skip
        reason = shortfall(
            accuracy, budget_of(self._spec, accuracy), by_decisions=counts_decisions(self._spec, accuracy)
        )
        judged = Candidate(
            name=made.name, precision=made.precision, target="", judged_by="ONNX Runtime",
            latency_us=None, rows_per_s=None, size_bytes=made.size_bytes, passed=not reason, reason=reason,
            int8_layers=len(quantized_layers(made.model)), **_figures(accuracy),
        )  # fmt: skip
        self.notes.extend([f"{made.name}: {made.note}"] if made.note else [])
        return judged

    def note_elsewhere(self, judged: Candidate, target: str) -> None:
        """That was judged for this target."""
        self._elsewhere.append(msgspec.structs.replace(judged, target=target))

    def few(self) -> Samples:
        """As many samples as the FP32 engine answers in about a second, from all over: a set may be sorted by class."""
        row_s = 1 / self._first_pace.rows_per_s
        count = max(_FEWEST, min(self.judges.count, math.ceil(_GLIMPSE_SAMPLES_S / row_s)))
        if count >= self.judges.count:
            return self.judges
        return SomeSamples(self.judges, [i * self.judges.count // count for i in range(count)])

    def has_int8(self) -> bool:
        """Whether some INT8 engine is good enough."""
        return any(one.passed and one.variant.precision == "int8" for one in self.tried)

    def pays(self, tried: Tried) -> bool:
        """Whether a pruned engine is better here than FP32 by the objective; where not, that is why it is refused.

        This CPU skips no zeros: what is no smaller runs the same kernels, on as many numbers.
        """
        first = self.tried[0]
        is_smaller = tried.size_bytes * _WORTH <= first.size_bytes
        if is_smaller and self._spec.objective != "size":
            self._race_of([first, tried], budget_s=_PAYING_S)
        if is_smaller and self.cost(tried) * _WORTH <= self.cost(first):
            return True
        tried.reason, tried.compiled = f"it is no better here than FP32, by {self._spec.objective}", None
        return False

    def has_wrong(self, beginning: str) -> bool:
        """Whether an engine whose name begins so could not be had, or was not what its graph says."""
        return any(one.name.startswith(beginning) for one in self._failed)

    def is_true(self, tried: Tried) -> bool:
        """Whether one that loses too much is at least what its graph says, as those that passed are; where not, that is
        why it was refused.
        """
        try:
            tried.compiled, tried.guards = self._compiled(tried.variant)
            self._require_true(tried)
        except Exception as error:
            tried.reason = said(error)
            return False
        finally:
            tried.compiled = None
        return True

    def _require_true(self, tried: Tried) -> None:
        """Raise WrongEngine where the runtime makes something else of the graph than it says: without VNNI, sums of
        products with all 8 bits overflow. Good luck with some samples is no merit.
        """
        assert tried.compiled is not None
        model = tried.variant.model
        run = target.runner(tried.compiled, self._subject.names)
        rows = [one.inputs for one in self.judges_first() if not tried.guards.refusal(run.watched, one.inputs)]
        wrong = first_difference(run, Reference(model), rows, agreement_bound(model))
        if wrong:
            raise WrongEngine(wrong, {})

    def judges_first(self) -> Iterator[Sample]:
        """A few of the samples."""
        return itertools.islice(self.judges, _ROWS_FOR_TRUTH)

    def _judged(self, variant: Variant) -> Tried:
        """By all samples, unless a few of many tell that it is far off."""
        tried, few = self._made(variant), self.few()
        if few.count * _MANY <= self.judges.count:
            self._judge(tried, few)
            if self._is_far_off(tried):
                return tried
        self._judge(tried, self.judges)
        return tried

    def _made(self, variant: Variant) -> Tried:
        compiled, guards = self._compiled(variant)
        return Tried(variant, compiled, self._base.accuracy, len(target.export(compiled)), guards)

    def _judge(self, tried: Tried, judges: Samples) -> None:
        assert tried.compiled is not None
        run = target.runner(tried.compiled, self._subject.names)
        own = msgspec.structs.replace(self._base.choice, guards=tried.guards, notes=[])
        tried.accuracy = judged_by(self._subject.reference, run, own, judges, self._spec, _TRIAL_S)
        by_decisions = counts_decisions(self._spec, tried.accuracy)
        tried.reason = shortfall(tried.accuracy, self.budget(tried), by_decisions=by_decisions, by_others=True)

    def _is_far_off(self, tried: Tried) -> bool:
        """Whether it is as good as certain that it loses several times what it may, whatever other samples say."""
        accuracy = tried.accuracy
        changed = accuracy.decisions_interval if counts_decisions(self._spec, accuracy) else None
        return any(sure[0] > _FAR * self.budget(tried) for sure in (accuracy.interval, changed) if sure)

    def _compiled(self, variant: Variant) -> tuple[ov.CompiledModel, Guards]:
        choice = self._base.choice
        graph = target.read_model(with_batch_axes(variant.model, choice.axes) if choice.axes else variant.model)
        return target.compile_model(graph, *self._config), choice.guards.of_another(target.guards_of(graph))

    def budget(self, tried: Tried) -> float:
        """The largest loss allowed."""
        return budget_of(self._spec, tried.accuracy)

    def loss(self, tried: Tried) -> float:
        """What is held against the budget: of the metric, and of the decisions where these count too."""
        accuracy = tried.accuracy
        if accuracy.loss is None:
            return math.inf
        changed = accuracy.decisions_changed if counts_decisions(self._spec, accuracy) else None
        return max(accuracy.loss, (changed or 0) / max(1, accuracy.samples))

    def note_unsure(self, accuracy: Accuracy) -> None:
        """Say so where a loss as large as the budget could not be told from chance, nor such a share of changed
        decisions where these count.
        """
        budget = budget_of(self._spec, accuracy)
        few = f"{accuracy.samples} samples are too few to tell a"
        if not is_sure(accuracy.interval, budget):
            reach = f"up to {accuracy.interval[1]:.3g}" if accuracy.interval else "any size"
            self.notes.append(f"{few} loss of {budget:.3g} from chance: with 95 % it may be {reach}")
        changed = accuracy.decisions_interval if counts_decisions(self._spec, accuracy) else None
        if changed is not None and not is_sure(changed, budget):
            self.notes.append(
                f"{few} share of {budget:.3g} changed decisions from chance: with 95 % it may be up to "
                f"{changed[1]:.3g} ({accuracy.decisions_changed} were seen to change)"
            )

    def race(self) -> None:
        """Time FP32 and all that passed, side by side; a note where that cannot be done."""
        try:
            self._race_of([one for one in self.tried if one.passed])
        except Exception as error:
            self.notes.append(f"the engines could not be timed beside each other: {said(error)}")

    def _race_of(self, runners: Sequence[Tried], budget_s: float = _RACE_S) -> None:
        engines = [one.compiled for one in runners if one.compiled is not None]
        choice = self._base.choice
        paces = race(engines, functools.partial(batch_of, choice), batched=bool(choice.axes), budget_s=budget_s)
        for one, pace in zip(runners, paces, strict=True):
            one.pace = pace

    def cost(self, tried: Tried) -> float:
        """By the objective, lower is better."""
        if self._spec.objective == "size":
            return float(tried.size_bytes)
        if tried.pace is None:
            return math.inf
        return (
            tried.pace.latency_us if self._spec.objective == "latency" else 1e6 / max(tried.pace.rows_per_s, _SLOWEST)
        )

    def _likely_cost(self, tried: Tried) -> float:
        """Engines that run the same kernels cost the same: what their times differ by is noise."""
        passed = [one for one in self.tried if one.passed]
        return min(self.cost(one) for one in [tried, *passed] if tried.variant.is_twin_of(one.variant))

    def by_merit(self) -> list[Tried]:
        """Those that passed and are what was asked for, the best first; FP32 among them where that may be chosen.

        Of those whose costs are within noise of each other, FP32 comes first, then what loses least.
        """
        wanted = self._spec.precision
        found = [one for one in self.tried if one.passed and wanted in ("auto", one.variant.precision)]
        if self._spec.gpu_targets and any(one.variant.pruned for one in found):
            # what a GPU gains by it, and the CPU has to answer as the GPU does
            found = [one for one in found if one.variant.pruned]
        losses = [-math.inf if one is self.tried[0] else self.loss(one) for one in found]
        points = [Outcome(loss, self._likely_cost(one)) for one, loss in zip(found, losses, strict=True)]
        return [found[i] for i in ranked(points, _WORTH)]

    def why_none(self) -> str:
        """Of the variants that were asked for, why the first one is not good enough."""
        wanted = [one.reason for one in self.tried if one.variant.precision == self._spec.precision]
        return (wanted or [one.reason for one in self._failed] or self.notes or ["there is no such engine"])[0]

    def candidates(self) -> tuple[Candidate, ...]:
        """For the report."""
        front = self._front()
        tried = [_candidate(one, on_front=one in front) for one in self.tried]
        return (*tried, *self._glimpsed, *self._elsewhere, *self._failed)

    def _front(self) -> list[Tried]:
        passed = [one for one in self.tried if one.passed]
        return [passed[i] for i in pareto_front([Outcome(self.loss(one), self._likely_cost(one)) for one in passed])]


def said(error: Exception) -> str:
    """An error in one line; what is not our own is named by its type too."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
    return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {line}"


def _candidate(tried: Tried, *, on_front: bool) -> Candidate:
    accuracy, variant, pace = tried.accuracy, tried.variant, tried.pace
    return Candidate(
        name=variant.name, precision=variant.precision, target="openvino", judged_by="OpenVINO",
        latency_us=pace.latency_us if pace else None, rows_per_s=pace.rows_per_s if pace else None,
        size_bytes=tried.size_bytes, passed=tried.passed, reason=tried.reason, on_front=on_front,
        int8_layers=len(quantized_layers(variant.model)), float_layers=tuple(sorted(variant.kept)),
        **_figures(accuracy),
    )  # fmt: skip


def _figures(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "metric": accuracy.metric, "value": accuracy.value, "loss": accuracy.loss, "interval": accuracy.interval,
        "decisions_changed": accuracy.decisions_changed, "samples": accuracy.samples,
        "decisions_interval": accuracy.decisions_interval,
    }  # fmt: skip


def _failed(variant: Variant, reason: str) -> Candidate:
    return Candidate(
        name=variant.name, precision=variant.precision, target="openvino", judged_by="OpenVINO", metric="", value=None,
        loss=None, interval=None, decisions_changed=None, samples=0, latency_us=None, rows_per_s=None, size_bytes=0,
        passed=False, reason=reason,
    )  # fmt: skip
