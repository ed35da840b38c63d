"""How good answers are, by the metrics that a sender may name. Sums that take any number of samples, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from engines.errors import ModelRefused
from engines.spec import LABEL_METRICS, Metric

__all__ = ["HIGHER_IS_BETTER", "Measure", "decisions", "evaluate", "loss", "measure"]

HIGHER_IS_BETTER: dict[Metric, bool] = {
    "top1": True, "top5": True, "f1": True, "cosine": True, "rmse": False, "mae": False,
}  # fmt: skip


class Measure(Protocol):
    """A metric over all samples added so far."""

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Answers [samples, classes] of scores with truth [samples] of classes, or both [samples, values]; float64."""

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

    Raises ModelRefused where there is no such reading.
    """
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    if metric not in LABEL_METRICS:
        if _sizes(answers) != _sizes(truth):
            raise ModelRefused(f"targets have shape {list(truth.shape)}; the answers have {list(answers.shape)}")
        return flat, truth.reshape(len(truth), -1).astype(np.float64)
    labels, classes = truth.reshape(-1), flat.shape[1]
    least = 6 if metric == "top5" else 2
    if len(_sizes(answers)) != 1 or classes < least:
        raise ModelRefused(
            f"{metric} needs scores of at least {least} classes a sample; the answers have shape {list(answers.shape)}"
        )
    if len(labels) != len(flat):
        raise ModelRefused(f"{len(labels)} labels for {len(flat)} answers; expected one each")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ModelRefused(f"labels go from {labels.min()} to {labels.max()}; the output has {classes} classes")
    return flat, labels.astype(np.int64)


def decisions(scores: np.ndarray) -> np.ndarray:
    """The class of each sample [samples] for scores [samples, classes]; -1 where a score is not a number."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _sizes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(size for size in array.shape[1:] if size != 1)


class _Top:
    """A label counts where fewer than `count` classes come before it; equal scores rank by number, NaN never counts."""

    def __init__(self, count: int) -> None:
        self._count, self._hits, self._samples = count, 0, 0

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        own = np.take_along_axis(answers, truth[:, None], axis=1)
        earlier = np.arange(answers.shape[1]) < truth[:, None]
        rank = ((answers > own) | ((answers == own) & earlier)).sum(axis=1)
        self._hits += int(((rank < self._count) & ~np.isnan(answers).any(axis=1)).sum())
        self._samples += len(answers)

    def value(self) -> float:
        return self._hits / self._samples if self._samples else math.nan


class _F1:
    """Macro-averaged: the mean of 2 hits / (guesses + labels) over the classes that occur as a label or as a guess."""

    def __init__(self) -> None:
        self._hits = self._seen = np.zeros(0)

    def add(self, answers: np.ndarray, truth: np.ndarray) -> None:
        classes = answers.shape[1]
        if not self._seen.size:
            self._hits, self._seen = np.zeros(classes), np.zeros(classes)
        guessed = decisions(answers)
        self._hits += np.bincount(truth[guessed == truth], minlength=classes)
        self._seen += np.bincount(truth, minlength=classes) + np.bincount(guessed[guessed >= 0], minlength=classes)

    def value(self) -> float:
        occurs = self._seen > 0
        return float((2 * self._hits[occurs] / self._seen[occurs]).mean()) if occurs.any() else math.nan


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
    "top1": lambda: _Top(1),
    "top5": lambda: _Top(5),
    "f1": _F1,
    "rmse": lambda: _Error(squared=True),
    "mae": lambda: _Error(squared=False),
    "cosine": _Cosine,
}
