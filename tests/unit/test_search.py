"""The search over one precision per layer: planted answers are found by every method, within its limits."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import ModelRefused
from engines.search import Method, Outcome, Trial, choose, pareto_front, search
from tests.unit.planted import BUDGET, Planted, best

METHODS: tuple[Method, ...] = ("greedy", "grid", "random", "bayesian", "genetic")
FOREVER_S = 1e9


class Clock:
    """One second more each time it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def found(planted: Planted, method: Method, trials: int = 64, **given: object) -> list[Trial]:
    return search(
        planted.layers, planted.evaluate, BUDGET, method=method, trials=trials, time_limit_s=FOREVER_S, **given
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_two_of_eight_layers_are_found_by_every_method(method: Method, seed: int) -> None:
    """The budget holds where both are float; every layer beyond them costs."""
    planted = Planted(8, [(seed + 1) % 8, (3 * seed + 4) % 8])
    chosen = choose(found(planted, method, seed=seed), BUDGET)
    assert chosen is not None
    assert planted.sensitive <= chosen.kept
    assert len(chosen.kept) <= 4


@pytest.mark.parametrize("method", ["grid", "random", "bayesian", "genetic"])
def test_where_all_assignments_fit_into_the_trials_the_best_of_all_is_found(method: Method) -> None:
    planted = Planted(4, [1, 2])
    every = [frozenset(kept) for n in range(5) for kept in itertools.combinations(planted.layers, n)]
    chosen = choose(found(planted, method, trials=40), BUDGET)
    assert chosen is not None
    assert planted.outcome(chosen.kept).cost == planted.outcome(best(planted, every)).cost


def test_greedy_needs_few_measurements_where_it_is_told_the_damage() -> None:
    planted = Planted(60, [7, 31, 44])
    trials = found(planted, "greedy", trials=40, sensitivity=planted.sensitivity())
    chosen = choose(trials, BUDGET)
    assert chosen is not None
    assert chosen.kept == planted.sensitive
    assert len(trials) <= 20


@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_layers_are_no_harm(method: Method) -> None:
    planted = Planted(200, [20, 150])
    trials = found(planted, method, trials=60)
    chosen = choose(trials, BUDGET)
    assert chosen is not None
    assert planted.sensitive <= chosen.kept
    assert len(trials) <= 61


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1])
def test_few_layers_are_no_harm(method: Method, count: int) -> None:
    planted = Planted(count, range(count))
    chosen = choose(found(planted, method), BUDGET)
    assert chosen is not None
    assert chosen.kept == frozenset(planted.layers)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_nothing_meets_is_answered_with_none_and_all_float_was_tried(method: Method) -> None:
    planted = Planted(5, [0, 1])
    trials = search(planted.layers, planted.evaluate, -1.0, method=method, trials=20, time_limit_s=FOREVER_S)
    assert choose(trials, -1.0) is None
    assert frozenset(planted.layers) in {trial.kept for trial in trials}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_searches_the_same_and_nothing_is_measured_twice(method: Method) -> None:
    one, other = Planted(7, [2, 5]), Planted(7, [2, 5])
    assert found(one, method, trials=30, seed=5) == found(other, method, trials=30, seed=5)
    assert len(one.asked) == len(set(one.asked)) <= 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trials", [1, 2, 5])
def test_no_more_is_measured_than_allowed_but_for_all_float(method: Method, trials: int) -> None:
    planted = Planted(10, [1, 8])
    found(planted, method, trials=trials)
    assert len(planted.asked) <= trials + 1


@pytest.mark.parametrize("method", METHODS)
def test_nothing_begins_after_the_time_limit(method: Method) -> None:
    planted = Planted(10, [1, 8])
    search(planted.layers, planted.evaluate, BUDGET, method=method, trials=500, time_limit_s=12, clock=Clock())
    assert 2 <= len(planted.asked) <= 14


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_built_is_passed_over(method: Method) -> None:
    """One layer must not be float: whoever tries is refused."""
    planted = Planted(6, [0, 3])

    def evaluate(kept: frozenset[str]) -> Outcome:
        if "layer5" in kept and len(kept) < 6:
            raise ModelRefused("no kernel")
        return planted.evaluate(kept)

    trials = search(planted.layers, evaluate, BUDGET, method=method, trials=64, time_limit_s=FOREVER_S)
    chosen = choose(trials, BUDGET)
    assert chosen is not None
    assert planted.sensitive <= chosen.kept
    assert "layer5" not in chosen.kept


def test_wrong_arguments_are_said() -> None:
    planted = Planted(3, [0, 1])
    with pytest.raises(ValueError, match="some name is given twice"):
        search(["a", "a"], planted.evaluate, 1.0, method="greedy", trials=5, time_limit_s=1.0)
    with pytest.raises(ValueError, match="'layer0' is missing"):
        found(planted, "greedy", sensitivity={"layer1": 1.0, "layer2": 1.0})
    with pytest.raises(ValueError, match="known are greedy, grid, random, bayesian, genetic"):
        found(planted, "luck")  # type: ignore[arg-type]


numbers = st.floats(0, 10) | st.just(math.nan) | st.just(math.inf)
points = st.lists(st.tuples(numbers, numbers), max_size=12)


@given(points)
@settings(max_examples=300, deadline=None)
def test_a_front_holds_what_nothing_beats_and_all_of_it(found: list[tuple[float, float]]) -> None:
    front = pareto_front(found)
    usable = [i for i, point in enumerate(found) if all(map(math.isfinite, point))]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    assert sorted(front) == [i for i in usable if not any(beats(found[j], found[i]) for j in usable)]


@given(points, st.floats(0, 10))
@settings(max_examples=300, deadline=None)
def test_what_is_chosen_holds_the_budget_and_is_the_cheapest(found: list[tuple[float, float]], budget: float) -> None:
    trials = [Trial(frozenset({str(i)}), Outcome(*point)) for i, point in enumerate(found)]
    good = [one for one in trials if one.outcome.loss <= budget and math.isfinite(one.outcome.cost)]
    chosen = choose(trials, budget)
    assert (chosen is None) == (not good)
    if chosen is not None:
        assert chosen in good
        assert chosen.outcome.cost == min(one.outcome.cost for one in good)
