"""Metrics against their formulas written out, and in as many pieces as one likes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.errors import ModelRefused
from engines.metrics import evaluate, fitting, loss, measure
from engines.spec import Metric

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((200, 7)).astype(np.float32)
LABELS = RNG.integers(0, 6, 200)  # class 6 is guessed and never right
VALUES, TARGETS = RNG.standard_normal((2, 50, 2, 3))
METRICS: tuple[Metric, ...] = ("top1", "top5", "f1", "rmse", "mae", "cosine")


def slow(metric: Metric) -> float:
    if metric in ("top1", "top5"):
        most = 1 if metric == "top1" else 5
        ranks = [
            sorted(range(7), key=lambda c, row=row: -row[c]).index(label)
            for row, label in zip(SCORES, LABELS, strict=True)
        ]
        return sum(rank < most for rank in ranks) / 200
    if metric == "f1":
        guesses = [int(np.argmax(row)) for row in SCORES]
        found = []
        for c in range(7):
            hits = sum(g == t == c for g, t in zip(guesses, LABELS, strict=True))
            precision, recall = hits / max(1, guesses.count(c)), hits / max(1, list(LABELS).count(c))
            found.append(2 * precision * recall / (precision + recall) if hits else 0.0)
        return sum(found) / 7
    pairs = [(a.ravel(), b.ravel()) for a, b in zip(VALUES, TARGETS, strict=True)]
    if metric == "cosine":
        return sum(a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in pairs) / 50
    errors = [abs(float(x - y)) for a, b in pairs for x, y in zip(a, b, strict=True)]
    return math.sqrt(sum(e * e for e in errors) / 300) if metric == "rmse" else sum(errors) / 300


def material(metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    return (SCORES, LABELS) if metric in ("top1", "top5", "f1") else (VALUES, TARGETS)


@pytest.mark.parametrize("metric", METRICS)
def test_each_is_its_formula_whole_or_in_pieces(metric: Metric) -> None:
    answers, truth = material(metric)
    pieces = measure(metric)
    for start in range(0, len(truth), 9):
        pieces.add(*fitting(metric, answers[start : start + 9], truth[start : start + 9]))
    assert evaluate(metric, answers, truth) == pytest.approx(slow(metric), rel=1e-12)
    assert pieces.value() == pytest.approx(slow(metric), rel=1e-12)


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_equal_scores_and_nan_win_nothing(metric: Metric) -> None:
    labels = np.arange(10)
    share = {"top1": 0.1, "top5": 0.5}[metric]
    assert evaluate(metric, np.zeros((10, 10)), labels) == share
    assert evaluate(metric, np.full((10, 10), np.nan), labels) == 0.0
    assert evaluate("f1", np.full((10, 10), np.nan), labels) == 0.0


LOGITS = RNG.standard_normal(200) * 3
SIDES = (LOGITS + RNG.standard_normal(200) > 0).astype(int)


@pytest.mark.parametrize("metric", ["top1", "f1"])
@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 1, 1)])
def test_one_score_a_sample_tells_two_classes_apart(metric: Metric, shape: tuple[int, ...]) -> None:
    """A sigmoid above one half, or a logit above zero: the same decisions, as two scores give them."""
    want = evaluate(metric, np.stack([np.zeros(200), LOGITS], axis=1), SIDES)
    assert 0.5 < want < 1
    assert evaluate(metric, LOGITS.reshape(shape), SIDES) == want
    assert evaluate(metric, 1 / (1 + np.exp(-LOGITS.reshape(shape))), SIDES) == want


@pytest.mark.parametrize("metric", ["top1", "f1"])
def test_what_one_score_means_is_known_after_the_last_sample(metric: Metric) -> None:
    """Logits between 0 and 1 alone would pass for probabilities."""
    found = measure(metric)
    for logit, side in ((0.3, 1), (0.2, 1), (-4.0, 0)):
        found.add(*fitting(metric, np.array([logit]), np.array([side])))
    assert found.value() == 1.0
    found.add(*fitting(metric, np.array([np.nan]), np.array([1])))
    assert found.value() < 1.0


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("metric", ["top1", "f1"])
def test_whole_numbers_are_classes(metric: Metric, dtype: type) -> None:
    want = evaluate(metric, SCORES, LABELS)
    assert evaluate(metric, SCORES.argmax(axis=1).astype(dtype), LABELS) == pytest.approx(want, rel=1e-12)
    assert evaluate(metric, SCORES.argmax(axis=1)[:, None].astype(dtype), LABELS) == pytest.approx(want, rel=1e-12)
    assert evaluate("top1", np.array([True, False, True]), np.array([1, 0, 0])) == pytest.approx(2 / 3)


def test_cosine_of_zero_huge_and_tiny_rows() -> None:
    zero, one = np.zeros((1, 3)), np.array([[1.0, 2.0, 2.0]])
    assert evaluate("cosine", zero, zero) == 1.0
    assert evaluate("cosine", zero, one) == 0.0
    assert evaluate("cosine", one * 1e300, one * 1e-300) == pytest.approx(1.0, rel=1e-15)
    assert math.isnan(evaluate("cosine", one * np.nan, one))


def test_dimensions_of_one_do_not_count() -> None:
    assert evaluate("top1", SCORES.reshape(200, 1, 7, 1), LABELS[:, None]) == evaluate("top1", SCORES, LABELS)
    assert evaluate("mae", np.ones((4, 1)), np.zeros(4)) == 1.0


@pytest.mark.parametrize(
    ("metric", "answers", "truth", "named"),
    [
        ("top1", SCORES[:, :5], LABELS, r"labels go from 0 to 5; the output has 5 classes"),
        ("top1", SCORES, -LABELS, "labels go from -5 to 0"),
        ("top1", SCORES[:, :1], LABELS, "labels go from 0 to 5; an output of one score a sample tells 0 from 1"),
        ("top5", SCORES[:, :1], LABELS * 0, "top5 needs scores of at least 6 classes"),
        ("top5", LABELS, LABELS, "top5 needs scores of at least 6 classes"),
        ("top5", SCORES[:, :5], LABELS % 5, "top5 needs scores of at least 6 classes"),
        ("f1", VALUES, LABELS[:50], r"the answers have shape \[50, 2, 3\]"),
        ("top1", SCORES, LABELS[:9], "9 labels for 200 answers"),
        ("rmse", VALUES, TARGETS.transpose(0, 2, 1), r"targets have shape \[50, 3, 2\]"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(
    metric: Metric, answers: np.ndarray, truth: np.ndarray, named: str
) -> None:
    with pytest.raises(ModelRefused, match=named):
        evaluate(metric, answers, truth)


@pytest.mark.parametrize("metric", METRICS)
def test_a_loss_is_positive_where_the_answers_are_worse(metric: Metric) -> None:
    better, worse = (0.1, 0.3) if metric in ("rmse", "mae") else (0.3, 0.1)
    assert loss(metric, better, worse) == pytest.approx(0.2)
    assert loss(metric, worse, better) == pytest.approx(-0.2)
