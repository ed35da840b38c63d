"""What holds for every search, whatever the losses and costs are."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.search import Method, Outcome, choose, pareto_front, ranked, search
from engines.trials import Trial

numbers = st.one_of(st.integers(-3, 3).map(float), st.floats())
points = st.lists(st.tuples(numbers, numbers), max_size=12)
methods: st.SearchStrategy[Method] = st.sampled_from(["greedy", "grid", "random", "bayesian", "genetic"])
LAYERS = "abcdef"


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(points)
def test_the_front_is_what_no_other_dominates(points: list[tuple[float, float]]) -> None:
    usable = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    want = {i for i in usable if not any(dominates(points[j], points[i]) for j in usable)}
    front = pareto_front(points)
    assert len(front) == len(want)
    assert set(front) == want
    assert [points[i][1] for i in front] == sorted(points[i][1] for i in front)


@given(points, numbers)
def test_the_chosen_is_within_the_budget_and_none_such_is_cheaper(
    points: list[tuple[float, float]], budget: float
) -> None:
    trials = [Trial(frozenset(str(i)), Outcome(*point)) for i, point in enumerate(points)]
    good = [trial for trial in trials if trial.outcome.is_usable and trial.outcome.loss <= budget]
    chosen = choose(trials, budget)
    assert (chosen is None) == (not good)
    if chosen:
        assert chosen in good
        assert chosen.outcome.cost == min(trial.outcome.cost for trial in good)


class Bench:
    """Random outcomes, some of them not numbers, each of which takes some of a clock's seconds."""

    def __init__(self, seed: int) -> None:
        self.seed, self.now_s = seed, 100.0
        self.begun: list[tuple[float, frozenset[str]]] = []

    def evaluate(self, kept: frozenset[str]) -> Outcome:
        self.begun.append((self.now_s, kept))
        dice = random.Random(f"{self.seed} {sorted(kept)}")
        self.now_s += dice.choice([0.0, 1.0, 5.0])
        return Outcome(dice.choice([math.nan, math.inf, dice.random(), 0.0]), dice.choice([math.nan, dice.random()]))

    def clock(self) -> float:
        return self.now_s


@settings(max_examples=150, deadline=None)
@given(
    methods, st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 80), st.sampled_from([0.5, 9.0, 60.0, 1e9]),
    st.floats(-0.1, 1),
    st.booleans(),
)  # fmt: skip
def test_limits_hold_and_nothing_is_measured_twice(
    method: Method, seed: int, count: int, trials: int, time_limit_s: float, budget: float, is_told: bool
) -> None:
    bench = Bench(seed)
    layers = LAYERS[:count]
    sensitivity = {name: random.Random(seed).random() for name in layers} if is_told else None
    tried = search(
        layers, bench.evaluate, budget, method=method, trials=trials, time_limit_s=time_limit_s, seed=seed % 1000,
        sensitivity=sensitivity, clock=bench.clock,
    )  # fmt: skip
    kept = [kept for _, kept in bench.begun]
    assert [trial.kept for trial in tried] == kept
    assert len(set(kept)) == len(kept)
    assert all(each <= set(layers) for each in kept)
    assert kept[0] == frozenset()
    late = [each for begun_s, each in bench.begun if begun_s - 100.0 >= time_limit_s]
    assert late in ([], [frozenset(layers)])
    assert len(kept) <= max(trials, 2)
    assert choose(tried, budget) or frozenset(layers) in kept


def test_among_costs_that_differ_by_noise_the_smallest_loss_is_first() -> None:
    points = [(0.009, 100.0), (0.001, 102.9), (0.0, 104.0), (0.002, 200.0), (0.002, 199.0)]
    assert ranked(points, 1.03) == [1, 0, 2, 4, 3]


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(1, 1e6) | st.just(math.inf)), max_size=12))
def test_every_point_is_ranked_once_and_none_before_what_is_clearly_cheaper(points: list[tuple[float, float]]) -> None:
    order = ranked(points, 1.03)
    assert sorted(order) == list(range(len(points)))
    for place, i in enumerate(order):
        assert all(points[i][1] <= 1.03 * points[j][1] for j in order[place:])
