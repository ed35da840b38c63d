"""How sure a measured loss is: it was measured on some samples, and the next ones are others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engines.metrics import loss, measure, right
from engines.spec import LABEL_METRICS, Metric

__all__ = ["Judged", "loss_interval", "share_interval"]

_RESAMPLES = 400
_TAILS = (2.5, 97.5)
_Z = 1.959964
"""Of a normal distribution, 95 % lie no further from its middle."""
_HALVINGS = 40


class Judged(NamedTuple):
    """One sample as a measure takes it (`engines.metrics.fitting`): [1, values] each, truth [1] or [1, values]."""

    answer: np.ndarray
    expected: np.ndarray
    truth: np.ndarray


def loss_interval(metric: Metric, samples: Sequence[Judged], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the loss against the reference.

    None for fewer than two samples, for answers of unlike sizes, or where the loss is no number.

    Percentiles of the loss over samples drawn again from these, engine and reference together (Efron and Tibshirani
    1993, "An Introduction to the Bootstrap", chapter 13). Of samples that are right or wrong these tell nothing of what
    none of them shows, so there it is the score interval of `_paired_interval`, about 3.8/n for n samples that all
    agree. F1 is no share of samples, but no less sure than one: its interval reaches that far too.
    """
    if len(samples) < 2 or len({tuple(array.shape for array in sample) for sample in samples}) > 1:
        return None
    answers, expected, truth = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    if metric not in LABEL_METRICS:
        return _percentiles(metric, answers, expected, truth, seed)
    own, reference = (right(5 if metric == "top5" else 1, one, truth) for one in (answers, expected))
    found = _paired_interval(int((reference & ~own).sum()), int((own & ~reference).sum()), len(truth))
    if metric != "f1":
        return found
    drawn = _percentiles(metric, answers, expected, truth, seed)
    return None if drawn is None else (min(found[0], drawn[0]), max(found[1], drawn[1]))


def _percentiles(
    metric: Metric, answers: np.ndarray, expected: np.ndarray, truth: np.ndarray, seed: int
) -> tuple[float, float] | None:
    own, reference = _resampled(metric, answers, truth), _resampled(metric, expected, truth)
    rng, losses = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, len(truth), len(truth))
        losses.append(loss(metric, reference(drawn), own(drawn)))
    if not np.isfinite(losses).all():
        return None
    low, high = (float(edge) for edge in np.percentile(losses, _TAILS))
    return low, high


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of the share that `count` of `of` samples are of all there may be (Wilson 1927, "Probable
    inference, the law of succession, and statistical inference"); up to 3.8/n where none of n is.
    """
    share, z2 = count / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return 0.0 if count == 0 else middle - half, 1.0 if count == of else middle + half


def _paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """The 95 % interval of (share lost - share gained), where of n samples so many went either way.

    Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design": all differences d that the score test does not reject,

        |lost - gained - n d| <= z sqrt(n (2 q + d (1 - d)))

    with q the likeliest share gained, given d: the root of 2 n q^2 - (lost + gained - (2 n - lost + gained) d) q -
    gained d (1 - d) = 0. With lost = gained = 0 it is z^2 / (n + z^2) either way, as Wilson's is.
    """
    net = lost - gained

    def is_held(d: float) -> bool:
        b = (2 * n - net) * d - lost - gained
        q = (math.sqrt(max(0.0, b * b + 8 * n * gained * d * (1 - d))) - b) / (4 * n)
        return (net - n * d) ** 2 <= _Z**2 * n * max(0.0, 2 * q + d * (1 - d))

    def edge(end: float) -> float:
        inside, outside = net / n, end
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_held(middle) else (inside, middle)
        return inside

    return edge(-1.0), edge(1.0)


def _resampled(metric: Metric, answers: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], float]:
    """The metric of samples by their numbers. Most are means over samples, so that each is measured once."""

    def whole(drawn: np.ndarray) -> float:
        found = measure(metric)
        found.add(answers[drawn], truth[drawn])
        return found.value()

    if metric == "f1":  # its mean is no F1
        return whole
    each = np.array([whole(np.array([i])) for i in range(len(truth))])
    if metric == "rmse":
        return lambda drawn: float(np.sqrt(np.mean(each[drawn] ** 2)))
    return lambda drawn: float(each[drawn].mean())
