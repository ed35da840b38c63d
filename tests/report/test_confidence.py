"""The interval of a loss: as wide as chance makes it, and none where it cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from engines.confidence import Judged, loss_interval


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


def test_no_difference_in_n_samples_allows_three_in_n() -> None:
    assert loss_interval("top1", judged(60, 0)) == (0.0, 3 / 60)


def test_an_engine_that_is_better_has_a_negative_loss() -> None:
    label = np.array([1])
    better = [Judged(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), label)] * 40
    found = loss_interval("top1", better)
    assert found == (-1.0, -1.0)


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
