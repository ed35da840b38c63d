"""How good answers are, by the metrics that a sender may name. Sums that take any number of samples, batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np

from engines.errors import ModelRefused
from engines.spec import LABEL_METRICS, Metric

__all__ = ["HIGHER_IS_BETTER", "Measure", "decisions", "evaluate", "fitting", "loss", "measure", "right"]

HIGHER_IS_BETTER: dict[Metric, bool] = {
    "top1": True, "top5": True, "f1": True, "cosine": True, "rmse": False, "mae": False,
}  # fmt: skip
_ROUNDED = 0.01
"""What an engine of few bits may leave [0, 1] by; logits go further."""


class Measure(Protocol):
    """A metric over all samples added so far."""

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Both as `fitting` gives them.

        Answers [samples, classes] or [samples, 1] of scores (float64) or [samples, 1] of classes (int64), with truth
        [samples] of classes; or both [samples, values], float64.
        """

    def value(self) -> float:
        """A share of 1 for `top1`, `top5`, `f1`; a mean over samples for `cosine`; else over all values."""


def measure(metric: Metric) -> Measure:
    """An empty measure of the metric."""
    return _MEASURES[metric]()


def evaluate(metric: Metric, answers: np.ndarray, truth: np.ndarray) -> float:
    """The metric of answers held as a whole; samples along axis 0. Raises ModelRefused where shapes do not fit."""
    found = measure(metric)
    found.add(*fitting(metric, answers, truth))
    return found.value()


def loss(metric: Metric, reference: float, value: float) -> float:
    """How much worse `value` is than `reference`, in the metric's unit; negative where it is better."""
    return reference - value if HIGHER_IS_BETTER[metric] else value - reference


def fitting(metric: Metric, answers: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as a measure takes them, samples along axis 0; dimensions of size 1 do not count.

    Labels are compared with scores of classes, with one score for class 1 against 0, or with whole numbers, which are
    classes. Raises ModelRefused where there is no such reading.
    """
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    if metric not in LABEL_METRICS:
        if _sizes(answers) != _sizes(truth):
            raise ModelRefused(f"targets have shape {list(truth.shape)}; the answers have {list(answers.shape)}")
        return flat, truth.reshape(len(truth), -1).astype(np.float64)
    labels, sizes = truth.reshape(-1), _sizes(answers)
    is_class = answers.dtype.kind in "iub" and not sizes
    classes = flat.shape[1] if sizes else 2
    least = 6 if metric == "top5" else 2
    if len(sizes) > 1 or classes < least or (is_class and metric == "top5"):
        raise ModelRefused(
            f"{metric} needs scores of at least {least} classes a sample; the answers have shape {list(answers.shape)}"
        )
    if len(labels) != len(flat):
        raise ModelRefused(f"{len(labels)} labels for {len(flat)} answers; expected one each")
    if is_class:
        return answers.reshape(-1, 1).astype(np.int64), labels.astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        has = f"the output has {classes} classes" if sizes else "an output of one score a sample tells 0 from 1"
        raise ModelRefused(f"labels go from {labels.min()} to {labels.max()}; {has}")
    return flat, labels.astype(np.int64)


def decisions(scores: np.ndarray) -> np.ndarray:
    """The class of each sample [samples] for scores [samples, classes]; -1 where a score is not a number.

    Whole numbers [samples, 1] are the classes themselves.
    """
    if scores.dtype.kind == "i":
        return scores[:, 0]
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def right(count: int, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which samples have their label among the first `count` classes, all samples at once; one score a sample is read
    as `measure` reads it.
    """
    if answers.shape[1] == 1 and answers.dtype.kind != "i":
        answers = _against(0.5 if _are_shares(answers) else 0.0, answers)
    return _hits(count, answers, truth)


def _hits(count: int, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if answers.dtype.kind == "i":
        found: np.ndarray = decisions(answers) == truth
        return found
    own = np.take_along_axis(answers, truth[:, None], axis=1)
    earlier = np.arange(answers.shape[1]) < truth[:, None]
    rank = ((answers > own) | ((answers == own) & earlier)).sum(axis=1)
    hits: np.ndarray = (rank < count) & ~np.isnan(answers).any(axis=1)
    return hits


def _are_shares(scores: np.ndarray) -> bool:
    return not ((scores < -_ROUNDED) | (scores > 1 + _ROUNDED)).any()


def _against(threshold: float, scores: np.ndarray) -> np.ndarray:
    """Scores of class 1 [samples, 1] as those of classes 0 and 1."""
    return np.concatenate([np.full_like(scores, threshold), scores], axis=1)


def _sizes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(size for size in array.shape[1:] if size != 1)


class _Top:
    """A label counts where fewer than `count` classes come before it; equal scores rank by number, NaN never counts."""

    def __init__(self, count: int) -> None:
        self._count, self._hits, self._samples = count, 0, 0

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        self._samples += len(answers)
        self._hits += int(_hits(self._count, answers, truth).sum())

    def value(self) -> float:
        return self._hits / self._samples if self._samples else math.nan


class _F1:
    """Macro-averaged: the mean of 2 hits / (guesses + labels) over the classes that occur as a label or as a guess."""

    def __init__(self) -> None:
        self._hits, self._seen = Counter[int](), Counter[int]()

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        guessed = decisions(answers)
        self._hits.update(truth[guessed == truth].tolist())
        self._seen.update([*truth.tolist(), *guessed[guessed >= 0].tolist()])

    def value(self) -> float:
        shares = [2 * self._hits[number] / seen for number, seen in self._seen.items()]
        return math.fsum(shares) / len(shares) if shares else math.nan


class _Labelled:
    """One score a sample means class 1 above 0.5 where all scores lie in [0, 1], else above 0; it takes all to know."""

    def __init__(self, make: Callable[[], Measure]) -> None:
        self._above_half, self._above_zero, self._are_shares = make(), make(), True

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        if answers.shape[1] > 1 or answers.dtype.kind == "i":
            self._above_half.add(answers, truth)
            return
        self._are_shares &= _are_shares(answers)
        for readings, threshold in ((self._above_half, 0.5), (self._above_zero, 0.0)):
            readings.add(_against(threshold, answers), truth)

    def value(self) -> float:
        return (self._above_half if self._are_shares else self._above_zero).value()


class _Error:
    """The root of the mean squared error, or the mean absolute error, over all values of all samples."""

    def __init__(self, *, squared: bool) -> None:
        self._squared, self._sum, self._values = squared, 0.0, 0

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        difference = np.abs(answers - truth)
        self._sum += float((difference**2 if self._squared else difference).sum())
        self._values += difference.size

    def value(self) -> float:
        mean = self._sum / self._values if self._values else math.nan
        return math.sqrt(mean) if self._squared else mean


class _Cosine:
    """The mean over samples of a.b / (|a| |b|); 1 where both are zero, 0 where one is."""

    def __init__(self) -> None:
        self._sum, self._samples = 0.0, 0

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        a, b = _unit(answers), _unit(truth)
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        self._sum += float(np.where(both_zero, 1.0, (a * b).sum(axis=1)).sum())
        self._samples += len(answers)

    def value(self) -> float:
        return self._sum / self._samples if self._samples else math.nan


def _unit(rows: np.ndarray) -> np.ndarray:
    """Each row over its length; by its largest value first, so that squares neither overflow nor vanish."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled: np.ndarray = rows / np.where(largest == 0, 1.0, largest)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled /= np.where(length == 0, 1.0, length)
    return scaled


_MEASURES: dict[Metric, Callable[[], Measure]] = {
    "top1": lambda: _Labelled(lambda: _Top(1)),
    "top5": lambda: _Top(5),
    "f1": lambda: _Labelled(_F1),
    "rmse": lambda: _Error(squared=True),
    "mae": lambda: _Error(squared=False),
    "cosine": _Cosine,
}
