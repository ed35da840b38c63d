"""The search over planted problems, whose answers are known, and at its edges."""

from __future__ import annotations

import itertools
import math

import pytest

from engines.errors import ModelRefused
from engines.search import Method, Outcome, choose, search
from engines.trials import Trial, holds
from tests.unit.planted import BUDGET, Planted, cheapest

METHODS: tuple[Method, ...] = ("greedy", "grid", "random", "bayesian", "genetic")
FOREVER_S = 1e9


def run(planted: Planted, method: Method, trials: int, seed: int = 0, budget: float = BUDGET) -> list[Trial]:
    return search(
        planted.layers, planted.evaluate, budget, method=method, trials=trials, time_limit_s=FOREVER_S, seed=seed
    )


def test_the_planted_answer_is_the_best_of_all_assignments() -> None:
    planted = Planted(8, [2, 5])
    every = [frozenset(kept) for size in range(9) for kept in itertools.combinations(planted.layers, size)]
    assert cheapest(planted, every) == planted.sensitive
    for kept in every:
        assert holds(planted.outcome(kept), BUDGET) == (planted.sensitive <= kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "sensitive", "trials"), [(8, (2, 5), 32), (24, (3, 4, 17), 64)])
def test_only_a_mixed_assignment_passes(
    method: Method, seed: int, count: int, sensitive: tuple[int, ...], trials: int
) -> None:
    planted = Planted(count, sensitive)
    chosen = choose(run(planted, method, trials, seed), BUDGET)
    assert chosen
    assert chosen.kept == planted.sensitive
    assert len(planted.asked) <= trials


@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_layers(method: Method) -> None:
    planted = Planted(200, [7, 90, 91])
    chosen = choose(run(planted, method, 120), BUDGET)
    assert chosen
    assert chosen.kept == planted.sensitive
    assert len(planted.asked) <= 120


def test_greedy_told_the_damage_asks_little() -> None:
    """The two ends, 1, 2 and 4 of the most damaging, and 3; none of the three can go."""
    planted = Planted(200, [7, 90, 91])
    search(
        planted.layers, planted.evaluate, BUDGET, method="greedy", trials=120, time_limit_s=FOREVER_S,
        sensitivity=planted.sensitivity(),
    )  # fmt: skip
    assert len(planted.asked) <= 8


def test_greedy_mends_a_wrong_order() -> None:
    """The sensitive ones are said to be the least damaging: all are float first, and all others go back."""
    planted = Planted(64, [10, 40])
    wrong = {name: -damage for name, damage in planted.sensitivity().items()}
    trials = search(
        planted.layers, planted.evaluate, BUDGET, method="greedy", trials=64, time_limit_s=FOREVER_S, sensitivity=wrong
    )
    chosen = choose(trials, BUDGET)
    assert chosen
    assert chosen.kept == planted.sensitive


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_search(method: Method) -> None:
    first, again = (run(Planted(12, [1, 6]), method, 40, seed=3) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("method", ["grid", "random", "bayesian", "genetic"])
def test_seeds_differ(method: Method) -> None:
    assert run(Planted(12, [1, 6]), method, 40, seed=3) != run(Planted(12, [1, 6]), method, 40, seed=4)


@pytest.mark.parametrize("method", ["grid", "random", "bayesian", "genetic"])
def test_with_trials_enough_every_assignment_is_tried_once(method: Method) -> None:
    planted = Planted(5, [2])
    run(planted, method, 32)
    assert len(set(planted.asked)) == len(planted.asked) == 32


@pytest.mark.parametrize("method", METHODS)
def test_where_all_low_holds_greedy_ends_and_others_go_on(method: Method) -> None:
    """The others find that one layer is cheaper in float, as one with dear conversions around it is."""

    def evaluate(kept: frozenset[str]) -> Outcome:
        return Outcome(0.1, 10.0 + len(kept) - 5.0 * ("b" in kept))

    trials = search("abcd", evaluate, 0.5, method=method, trials=16, time_limit_s=FOREVER_S)
    assert trials[0].kept == frozenset()
    chosen = choose(trials, 0.5)
    assert chosen
    assert chosen.kept == (frozenset() if method == "greedy" else {"b"})
    assert len(trials) == (1 if method == "greedy" else 16)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trials", [1, 2, 20])
def test_where_nothing_holds_all_float_is_tried(method: Method, trials: int) -> None:
    planted = Planted(6, [1])
    tried = run(planted, method, trials, budget=-1.0)
    assert [trial.kept for trial in tried[:2]] == [frozenset(), frozenset(planted.layers)]
    assert choose(tried, -1.0) is None
    assert len(planted.asked) <= max(2, trials)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [-1.0, BUDGET, 100.0])
def test_no_layer_and_one(method: Method, budget: float) -> None:
    assert [trial.kept for trial in run(Planted(0, []), method, 9, budget=budget)] == [frozenset()]
    tried = [trial.kept for trial in run(Planted(1, [0]), method, 9, budget=budget)]
    assert tried == ([frozenset()] if method == "greedy" and budget == 100.0 else [frozenset(), {"layer0"}])


@pytest.mark.parametrize("unusable", ["refused", "nan", "infinite cost"])
@pytest.mark.parametrize("method", METHODS)
def test_unusable_assignments_do_not_end_the_search(method: Method, unusable: str) -> None:
    """Wherever layer 3 is low there is no outcome; the sensitive layer is another."""
    planted = Planted(8, [5])

    def evaluate(kept: frozenset[str]) -> Outcome:
        found = planted.evaluate(kept)
        if "layer3" in kept:
            return found
        if unusable == "refused":
            raise ModelRefused("no kernel")
        return found._replace(loss=math.nan) if unusable == "nan" else found._replace(cost=math.inf)

    trials = search(planted.layers, evaluate, BUDGET, method=method, trials=48, time_limit_s=FOREVER_S)
    chosen = choose(trials, BUDGET)
    assert chosen
    assert chosen.kept == {"layer3", "layer5"}
    assert all(not trial.outcome.is_usable for trial in trials if "layer3" not in trial.kept)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_usable_at_all(method: Method) -> None:
    trials = search("abcd", lambda _: Outcome(math.nan, math.nan), 0.5, method=method, trials=9, time_limit_s=9)
    assert choose(trials, 0.5) is None
    assert len(trials) <= 9


@pytest.mark.parametrize("method", METHODS)
def test_other_errors_pass_through(method: Method) -> None:
    def evaluate(kept: frozenset[str]) -> Outcome:
        if len(kept) in (0, 3):
            return Outcome(9.0, 1.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        search("abc", evaluate, 0.5, method=method, trials=9, time_limit_s=FOREVER_S)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0"),
        ({"time_limit_s": math.nan}, "time_limit_s is nan"),
        ({"layers": "aab"}, "given twice"),
        ({"sensitivity": {"a": 1.0}}, "'b' is missing"),
        ({"method": "annealing"}, "greedy, grid, random, bayesian, genetic"),
    ],
)
def test_what_cannot_be_searched_is_refused(change: dict[str, object], said: str) -> None:
    asked = {"layers": "ab", "method": "greedy", "trials": 9, "time_limit_s": 9.0, **change}
    with pytest.raises(ValueError, match=said):
        search(evaluate=lambda _: Outcome(0.0, 1.0), budget=0.0, **asked)  # type: ignore[arg-type]
