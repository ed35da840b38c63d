"""Hold an engine's answers against the reference's and the truth, sample by sample; only one batch is in memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping

import numpy as np

from engines.batchproof import differs, is_float, join
from engines.confidence import Judged, loss_interval, share_interval
from engines.errors import ModelRefused
from engines.metrics import decisions, evaluate, fitting, loss, measure
from engines.npz import Sample, Samples
from engines.report import Accuracy, WorstSample
from engines.spec import LABEL_METRICS, Metric, Spec

__all__ = ["assess", "budget_of", "default_metric", "is_sure", "shortfall"]

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
WORST = 5
_BATCH_BYTES = 2**26
_MOST_SHARES = 400
_KEPT_BYTES = 2**22
_MOST_KEPT = 10_000
"""Bytes of answers, and samples, for the interval of the loss."""
_USUAL_BUDGET = 0.01
_TIES = 0.01
"""Share of whole numbers that may differ: one behind a rounding or an argmax flips on a tie."""


def default_metric(truth: str | None) -> Metric:
    """Labels are for `top1`, targets for `rmse`; without either, `cosine` against the reference."""
    return "top1" if truth == "labels" else "rmse" if truth == "targets" else "cosine"


def assess(
    run: Run, reference: Run, samples: Samples, metric: Metric | None, *, tolerance: float,
    axes: Mapping[str, int] | None = None, output_axes: Mapping[str, int] | None = None, rows: int = 16,
    budget_s: float | None = None, exact: Container[str] = (), output: str | None = None,
) -> Accuracy:  # fmt: skip
    """Run the engine (`run`) in batches and the reference on each sample alone, and compare.

    `axes` and `output_axes` say where inputs and outputs carry rows; without them, samples run one at a time. A batch
    has at most `rows` samples and 64 MiB of inputs and answers. Floats may differ by `tolerance` times the largest
    |answer| of the reference; whole numbers must be equal in the outputs named in `exact`. `metric` None takes
    `default_metric`; it is taken of `output`, without a name of the one output that the truth fits. After `budget_s`
    no further batch is begun; the result says how many samples there were. Raises ModelRefused where the truth does
    not fit the answers; what `run` or `reference` raise passes through.
    """
    chosen = metric or default_metric(samples.truth)
    judge = _Judge(samples, chosen, tolerance, exact, output)
    where = dict(output_axes or {}) if axes else {}
    started = time.monotonic()
    for batch in _batches(samples, dict(axes or {}), rows, judge):
        answers = run(join([sample.inputs for sample in batch], axes) if axes else batch[0].inputs)
        for i, sample in enumerate(batch):
            judge.take(reference(sample.inputs), _part(answers, where, i), sample.truth)
        if budget_s is not None and time.monotonic() - started >= budget_s:
            break
    return judge.result()


def budget_of(spec: Spec, accuracy: Accuracy) -> float:
    """The largest loss allowed: what was asked, else 0.01 of a share, or 1 % of the reference's own error."""
    if spec.accuracy_budget is not None:
        return spec.accuracy_budget
    is_error = accuracy.metric in ("rmse", "mae")
    return _USUAL_BUDGET * (accuracy.reference_value or 0.0) if is_error else _USUAL_BUDGET


def shortfall(accuracy: Accuracy, budget: float | None, *, by_decisions: bool = False, by_others: bool = False) -> str:
    """Why the answers are not good enough, or nothing. `budget` is the largest loss allowed; None allows any.

    `by_decisions` holds the share of samples whose largest score is another than the reference's to the budget too,
    `by_others` the outputs that the metric does not look at.
    """
    if budget is None:
        return ""
    if accuracy.loss is None:
        return f"{accuracy.metric} is not a number"
    if accuracy.loss > budget:
        return (
            f"{accuracy.metric} is {accuracy.value:.6g}, the reference has {accuracy.reference_value:.6g}: a loss of "
            f"{accuracy.loss:.3g}, {budget:.3g} allowed"
        )
    changed = accuracy.decisions_changed if by_decisions else None
    if changed is not None and changed > budget * accuracy.samples:
        return (
            f"the largest score is another than the reference's in {changed} of {accuracy.samples} samples, a share of "
            f"{changed / accuracy.samples:.3g}, {budget:.3g} allowed (with metric 'cosine' these do not count)"
        )
    most = _USUAL_BUDGET if accuracy.metric in ("rmse", "mae") else max(budget, _USUAL_BUDGET)
    for name, lost in accuracy.others.items() if by_others else ():
        if lost > most:
            return f"output {name!r} is off by {lost:.3g} (1 - cosine), {most:.3g} allowed; `output` names what counts"
    return ""


def is_sure(interval: tuple[float, float] | None, budget: float) -> bool:
    """Whether there were samples enough to tell a loss of this size from chance: their interval reaches no further."""
    return interval is not None and interval[1] <= budget


def _batches(samples: Samples, axes: dict[str, int], rows: int, judge: _Judge) -> Iterator[list[Sample]]:
    """The first sample runs alone: it tells how many bytes an answer has."""
    batch: list[Sample] = []
    for sample in samples:
        single = axes and all(sample.inputs[name].shape[axis] == 1 for name, axis in axes.items())
        batch.append(sample)
        most = min(rows, _BATCH_BYTES // max(1, judge.answer_bytes + _bytes(sample.inputs))) if single else 1
        if not judge.answer_bytes or len(batch) >= most:
            yield batch
            batch = []
    if batch:
        yield batch


def _part(answers: Arrays, axes: Mapping[str, int], index: int) -> Arrays:
    return {
        name: np.take(array, range(index, index + 1), axis=axes[name]) if name in axes else array
        for name, array in answers.items()
    }


class _Judge:
    """Takes answers one sample at a time and keeps sums, the worst samples and one number each few samples."""

    def __init__(
        self, samples: Samples, metric: Metric, tolerance: float, exact: Container[str], output: str | None
    ) -> None:
        self._samples, self._metric, self._tolerance, self._exact = samples, metric, tolerance, exact
        self._own, self._reference = measure(metric), measure(metric)
        self._output, self._asked = "", output
        self._count = self._over = self._changed = 0
        self._is_scores = False
        self._worst: list[tuple[float, WorstSample]] = []
        self._per_share = math.ceil(samples.count / _MOST_SHARES)
        self._shares: list[float] = []
        self._judged: list[Judged] = []
        self._others: dict[str, float] = {}
        self._room = _KEPT_BYTES
        self.answer_bytes = 0

    def take(self, want: Arrays, got: Arrays, truth: np.ndarray | None) -> None:
        if not self._output:
            self._output = _output_of(self._metric, want, truth, self._asked)
            guess = truth is None and np.squeeze(want[self._output]).ndim == 1
            self._is_scores = self._metric in LABEL_METRICS or guess
        self.answer_bytes = max(self.answer_bytes, 1, _bytes(want))
        self._note_difference(want, got)
        expected, answer = want[self._output][None], got[self._output][None]
        if expected.shape != answer.shape:
            raise ModelRefused(
                f"output {self._output!r} has shape {list(answer.shape[1:])}; the reference {list(expected.shape[1:])}"
            )
        known = expected if truth is None else truth[None]
        own, truth_of_own = fitting(self._metric, answer, known)
        reference, _ = fitting(self._metric, expected, known)
        self._own.add(own, truth_of_own)
        self._reference.add(reference, truth_of_own)
        self._keep(Judged(own, reference, truth_of_own))
        self._note_others(want, got)
        if self._is_scores and expected.size:
            labelled = self._metric in LABEL_METRICS
            pair = (reference, own) if labelled else (expected.reshape(1, -1), answer.reshape(1, -1))
            self._changed += int(decisions(pair[0])[0] != decisions(pair[1])[0])
        self._count += 1

    def _keep(self, judged: Judged) -> None:
        """For the interval. Of scores of classes, the class alone, where that is all that the metric looks at."""
        if self._metric in ("top1", "f1") and judged.answer.shape[1] > 1:
            own, reference = (decisions(scores)[:, None].astype(np.int64) for scores in judged[:2])
            judged = Judged(own, reference, judged.truth)
        if self._room > 0 and len(self._judged) < _MOST_KEPT:
            self._room -= sum(array.nbytes for array in judged)
            self._judged.append(judged)

    def _note_others(self, want: Arrays, got: Arrays) -> None:
        """What the outputs lose that the metric does not look at: 1 - cosine, for whole numbers the share unequal."""
        for name, expected in want.items():
            if name == self._output or self._asked is not None or not expected.size:
                continue
            lost = (
                1 - evaluate("cosine", got[name][None], expected[None])
                if is_float(expected)
                else float(np.mean(got[name] != expected))
            )
            self._others[name] = self._others.get(name, 0.0) + (1.0 if math.isnan(lost) else lost)

    def _note_difference(self, want: Arrays, got: Arrays) -> None:
        share, worst = max((self._difference(name, want[name], got[name]) for name in want), key=lambda found: found[0])
        self._over += share > 1
        if share:
            self._worst = sorted([*self._worst, (share, worst)], key=lambda found: (-found[0], found[1].index))[:WORST]
        if self._count % self._per_share == 0:
            self._shares.append(share)
        else:
            self._shares[-1] = max(self._shares[-1], share)

    def _difference(self, name: str, want: np.ndarray, got: np.ndarray) -> tuple[float, WorstSample]:
        """The difference as a share of its bound, infinite where one of the two is not finite."""
        found = differs(want, got, self._tolerance)
        bound = found.bound if is_float(want) else 0.0 if name in self._exact else _TIES * want.size
        finite = math.isfinite(found.difference) and not (found.differs and found.difference == 0)
        share = math.inf if not finite else found.difference / bound if bound else (math.inf if found.differs else 0.0)
        return share, WorstSample(self._count, name, found.difference if finite else None, bound)

    def result(self) -> Accuracy:
        value, reference = _finite(self._own.value()), _finite(self._reference.value())
        return Accuracy(
            samples=self._count,
            available=self._samples.count,
            synthetic=self._samples.synthetic,
            over_bound=self._over,
            worst=tuple(worst for _, worst in self._worst),
            shares=tuple(_finite(float(f"{share:.3g}")) for share in self._shares),
            samples_per_share=self._per_share,
            metric=self._metric,
            against=self._samples.truth or "reference",
            output=self._output,
            reference_value=reference,
            value=value,
            loss=None if value is None or reference is None else loss(self._metric, reference, value),
            interval=loss_interval(self._metric, self._judged),
            decisions_changed=self._changed if self._is_scores else None,
            decisions_interval=share_interval(self._changed, self._count) if self._is_scores else None,
            others={name: lost / self._count for name, lost in self._others.items()},
            tolerance=self._tolerance,
        )


def _output_of(metric: Metric, answers: Arrays, truth: np.ndarray | None, asked: str | None) -> str:
    """The output that is asked for, else the one that the truth can be about: scores for labels, an equal shape for
    targets. Without a truth, the first of floats.
    """
    if asked is not None and asked not in answers:
        raise ModelRefused(f"output {asked!r} does not exist; the model gives {', '.join(answers)}")
    names = [asked] if asked else [name for name, array in answers.items() if is_float(array)] or list(answers)
    if truth is None:
        return names[0]
    probe = np.zeros_like(truth)[None]  # the label itself must not choose: one beyond the classes is an error
    fits = []
    for name in names:
        with contextlib.suppress(ModelRefused):
            fitting(metric, answers[name][None], probe)
            fits.append(name)
    if not fits:
        fitting(metric, answers[names[0]][None], probe)  # says what does not fit
    if len(fits) > 1:
        raise ModelRefused(f"{metric} could be taken of the outputs {', '.join(fits)}; name one in the spec: output")
    return fits[0] if fits else names[0]


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
