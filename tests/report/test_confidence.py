"""The interval of a loss: as wide as chance makes it, and none where it cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from engines.confidence import Judged, loss_interval, share_interval
from engines.spec import Metric

BETTER = Judged(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([1]))


def judged(hits: int, missed: int) -> list[Judged]:
    """Samples of class 1, which the reference knows all and the engine but for `missed`."""
    right, wrong = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    label = np.array([1])
    return [Judged(right, right, label)] * hits + [Judged(wrong, right, label)] * missed


def test_it_covers_the_loss_and_narrows_with_samples() -> None:
    few, many = loss_interval("top1", judged(45, 5)), loss_interval("top1", judged(900, 100))
    assert few is not None
    assert many is not None
    assert few[0] < 0.1 < few[1]
    assert many[0] < 0.1 < many[1]
    # of a share p of n, the 95 % interval is about 4 sqrt(p (1 - p) / n) wide
    for (low, high), n in ((few, 50), (many, 1000)):
        assert high - low == pytest.approx(4 * np.sqrt(0.1 * 0.9 / n), rel=0.35)


@pytest.mark.parametrize("n", [12, 60, 156, 300])
@pytest.mark.parametrize("better", [0, 1])
def test_where_nothing_is_lost_in_n_samples_about_three_in_n_may_be(n: int, better: int) -> None:
    """Also where the engine is right by chance once where the reference is wrong: that tells nothing of losses."""
    found = loss_interval("top1", [*judged(n - better, 0), *([BETTER] * better)])
    assert found is not None
    low, high = found
    assert low <= -better / n < high
    assert 2 / n < high < 4 / n
    if not better:
        assert high == pytest.approx(3.8415 / (n + 3.8415), rel=1e-4), "that of Wilson 1927"


def test_as_much_lost_as_gained_is_no_certainty() -> None:
    both = loss_interval("top1", [*judged(154, 1), BETTER])
    none = loss_interval("top1", judged(156, 0))
    assert both is not None
    assert none is not None
    assert both[1] > none[1]


def test_both_wrong_in_another_way_is_nothing_lost() -> None:
    answer, expected, label = np.array([[1.0, 0, 0]]), np.array([[0, 0, 1.0]]), np.array([1])
    right = np.array([[0, 1.0, 0]])
    found = loss_interval("top1", [*[Judged(right, right, label)] * 11, Judged(answer, expected, label)])
    assert found == loss_interval("top1", [Judged(right, right, label)] * 12)


@pytest.mark.parametrize(("n", "lost", "gained"), [(40, 0.05, 0.02), (150, 0.01, 0.01), (400, 0.03, 0.0)])
def test_it_covers_the_loss_of_all_samples_as_often_as_it_says(n: int, lost: float, gained: float) -> None:
    rng, kinds = np.random.default_rng(0), [judged(0, 1)[0], BETTER, judged(1, 0)[0]]
    held = 0
    for counts in rng.multinomial(n, [lost, gained, 1 - lost - gained], 300):
        drawn = [one for kind, count in zip(kinds, counts, strict=True) for one in [kind] * count]
        low, high = loss_interval("top1", drawn)  # type: ignore[misc]
        held += low <= lost - gained <= high
    assert held / 300 >= 0.92  # three standard errors below 0.95 are 0.912


def test_an_engine_that_is_better_has_a_negative_loss() -> None:
    found = loss_interval("top1", [BETTER] * 40)
    assert found is not None
    assert found[0] == -1.0
    assert -1 < found[1] < -0.8


@pytest.mark.parametrize("metric", ["top1", "top5", "f1"])
@pytest.mark.parametrize("score", [0.9, 3.0])
def test_every_metric_of_labels_has_one(metric: Metric, score: float) -> None:
    """One score a sample stands for two classes; `top5` takes six."""
    if metric == "top5":
        same = [Judged(np.arange(7.0)[None], np.arange(7.0)[None], np.array([i % 7])) for i in range(70)]
    else:
        scores = [np.array([[score if i % 2 else 1 - score]]) for i in range(70)]
        same = [Judged(one, one, np.array([i % 2])) for i, one in enumerate(scores)]
    found = loss_interval(metric, same)
    assert found is not None
    assert found[0] <= 0
    assert 2 / 70 < found[1] < 4 / 70


def test_a_share_is_as_unsure_as_its_samples_are_few() -> None:
    assert share_interval(0, 12) == (0.0, pytest.approx(3.8415 / 15.8415, rel=1e-4))
    low, high = share_interval(30, 100)
    assert (low, high) == (pytest.approx(0.2189, abs=1e-3), pytest.approx(0.3958, abs=1e-3))  # Wilson, by any table
    assert share_interval(5, 5)[1] == 1.0


def test_where_it_cannot_be_told_there_is_none() -> None:
    assert loss_interval("top1", judged(1, 0)) is None
    ragged = [Judged(np.ones((1, n)), np.ones((1, n)), np.ones((1, n))) for n in (3, 4)]
    assert loss_interval("cosine", ragged) is None
    nan = np.full((1, 2), np.nan)
    assert loss_interval("cosine", [Judged(nan, nan, nan)] * 3) is None


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_errors_count_as_losses(metric: str) -> None:
    rng = np.random.default_rng(0)
    truths = rng.standard_normal((200, 1, 4))
    samples = [Judged(truth + 0.5, truth + 0.1, truth) for truth in truths]
    low, high = loss_interval(metric, samples)  # type: ignore[arg-type,misc]
    assert low <= 0.4 + 1e-9
    assert high >= 0.4 - 1e-9
