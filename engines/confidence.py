"""How sure a measured loss is: it was measured on some samples, and the next ones are others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engines.metrics import decisions, loss, measure
from engines.spec import LABEL_METRICS, Metric

__all__ = ["Judged", "loss_interval"]

_RESAMPLES = 400
_TAILS = (2.5, 97.5)
_RULE_OF_THREE = 3.0


class Judged(NamedTuple):
    """One sample as a measure takes it (`engines.metrics.fitting`): [1, values] each, truth [1] or [1, values]."""

    answer: np.ndarray
    expected: np.ndarray
    truth: np.ndarray


def loss_interval(metric: Metric, samples: Sequence[Judged], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the loss against the reference.

    None for fewer than two samples, for answers of unlike sizes, or where the loss is no number.

    Percentiles of the loss over samples drawn again from these, engine and reference together (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", chapter 13). Where no decision of n differs, that tells nothing of rare
    ones: then a share of up to 3/n is possible with 95 % (Hanley and Lippman-Hand 1983).
    """
    if len(samples) < 2 or len({tuple(array.shape for array in sample) for sample in samples}) > 1:
        return None
    answers, expected, truth = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    rng, losses = np.random.default_rng(seed), []
    own, reference = _resampled(metric, answers, truth), _resampled(metric, expected, truth)
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(truth), len(truth))
        losses.append(loss(metric, reference(drawn), own(drawn)))
    if not np.isfinite(losses).all():
        return None
    low, high = (float(edge) for edge in np.percentile(losses, _TAILS))
    if metric in LABEL_METRICS and np.array_equal(decisions(answers), decisions(expected)):
        high = max(high, _RULE_OF_THREE / len(truth))
    return low, high


def _resampled(metric: Metric, answers: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], float]:
    """The metric of samples by their numbers. Most are means over samples, so that each is measured once."""

    def whole(drawn: np.ndarray) -> float:
        found = measure(metric)
        found.add(answers[drawn], truth[drawn])
        return found.value()

    # the mean of F1 is no F1, and what a single score means takes all of them to know
    if metric == "f1" or (metric in LABEL_METRICS and answers.shape[1] == 1 and answers.dtype.kind == "f"):
        return whole
    each = np.array([whole(np.array([i])) for i in range(len(truth))])
    if metric == "rmse":
        return lambda drawn: float(np.sqrt(np.mean(each[drawn] ** 2)))
    return lambda drawn: float(each[drawn].mean())
