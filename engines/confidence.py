"""How sure a measured loss is: it was measured on some samples, and the next ones are others."""

from __future__ import annotations

from collections.abc import Sequence
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
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(truth), len(truth))
        own, reference = measure(metric), measure(metric)
        own.add(answers[drawn], truth[drawn])
        reference.add(expected[drawn], truth[drawn])
        losses.append(loss(metric, reference.value(), own.value()))
    if not np.isfinite(losses).all():
        return None
    low, high = (float(edge) for edge in np.percentile(losses, _TAILS))
    if metric in LABEL_METRICS and np.array_equal(decisions(answers), decisions(expected)):
        high = max(high, _RULE_OF_THREE / len(truth))
    return low, high
