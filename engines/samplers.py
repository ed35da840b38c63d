"""Optuna's samplers over one precision per layer: grid, random, TPE and NSGA-II, seeded, in memory and silent.

The two that learn are told how far an assignment is outside the budget as a constraint, so that also assignments that
all fail lead them. TPE minimizes the cost alone; NSGA-II both cost and loss, for a population needs variety.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from engines.trials import Ledger, Outcome

if TYPE_CHECKING:
    import optuna

__all__ = ["METHODS", "explore", "tied"]

METHODS = ("grid", "random", "bayesian", "genetic")
_UNUSABLE = 2.0
"""Further outside than any usable outcome, whose figure is below 1."""
_EXCESS = "excess"


def explore(
    ledger: Ledger, layers: Sequence[str], budget: float, *, method: str, seed: int,
    sensitivity: Mapping[str, float] | None = None,
) -> None:  # fmt: skip
    """Measure what the sampler of `method` proposes until the ledger's limits, or until there is nothing new.

    `grid` goes through all assignments. Where the trials are too few for that, it ties layers into as many groups as
    fit, each wholly in one precision: layers of like `sensitivity`, or neighbours where none is given. The others are
    given an untried neighbour of any assignment that they propose again. Raises Spent at the limits.
    """
    groups = _grid_groups(ledger, layers, sensitivity) if method == "grid" else [[name] for name in layers]
    space = _Space(ledger, groups, budget, seed if method != "grid" else None)
    if not groups or space.is_exhausted():
        return
    import optuna

    with _silent():
        sampler = _sampler(method, space, ledger.left, seed)
        directions = ["minimize"] * (2 if method == "genetic" else 1)
        study = optuna.create_study(sampler=sampler, directions=directions)

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            chosen = [trial.suggest_categorical(name, [False, True]) for name in space.parameters]
            return space.told(trial, chosen)[-len(directions) :]

        study.optimize(objective, callbacks=[space.go_on])


def tied(layers: Sequence[str], most: int) -> list[list[str]]:
    """The layers in at most `most` (1 or more) groups of neighbours, whose sizes differ by at most 1."""
    count = max(1, min(most, len(layers)))
    ends = [len(layers) * i // count for i in range(count + 1)]
    return [list(layers[start:end]) for start, end in pairwise(ends) if end > start]


def _grid_groups(ledger: Ledger, layers: Sequence[str], sensitivity: Mapping[str, float] | None) -> list[list[str]]:
    ordered = sorted(layers, key=lambda name: sensitivity[name]) if sensitivity else layers
    every = {frozenset[str](), frozenset(layers)}  # in every grid; where they were tried, they cost no trial
    fitting = (ledger.left + len(every & set(ledger.tried))).bit_length() - 1
    return tied(ordered, fitting) if fitting else []


class _Space:
    """The assignments that groups of layers span, and what the study is told of each.

    A sampler that may repeat itself has a `walk_seed`; a grid ends by itself.
    """

    def __init__(self, ledger: Ledger, groups: Sequence[Sequence[str]], budget: float, walk_seed: int | None) -> None:
        self._ledger, self._groups, self._budget = ledger, groups, budget
        self._walk = None if walk_seed is None else random.Random(walk_seed)
        # of one width, so that optuna's sorting by name keeps their order
        self.parameters = [f"{i:06d}" for i in range(len(groups))]
        worst = ledger.measure(frozenset()).loss - budget
        self._scale = worst if math.isfinite(worst) and worst > 0 else abs(budget) or 1.0

    def is_exhausted(self) -> bool:
        return len(self._ledger.tried) >= 1 << len(self._groups)

    def kept(self, chosen: Sequence[bool]) -> frozenset[str]:
        return frozenset(name for group, is_kept in zip(self._groups, chosen, strict=True) if is_kept for name in group)

    def told(self, trial: optuna.Trial, chosen: Sequence[bool]) -> tuple[float, float]:
        """Excess and cost of an assignment; one that was tried before is answered from memory."""
        kept = self.kept(chosen)
        if self._walk and kept in self._ledger.tried and not self.is_exhausted():
            untried = self._untried(chosen, self._walk)
            trial.study.enqueue_trial(dict(zip(self.parameters, untried, strict=True)))
        outcome = self._ledger.measure(kept)
        excess = self._excess(outcome)
        trial.set_user_attr(_EXCESS, excess)
        return excess, self._cost(outcome)

    def go_on(self, study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if self._walk and self.is_exhausted():
            study.stop()

    def _untried(self, chosen: Sequence[bool], walk: random.Random) -> list[bool]:
        """A random walk away from it, one layer a step, as far as it takes."""
        moved = list(chosen)
        while self.kept(moved) in self._ledger.tried:
            i = walk.randrange(len(moved))
            moved[i] = not moved[i]
        return moved

    def _excess(self, outcome: Outcome) -> float:
        """How far beyond the budget, from -1 to 1 and not above 0 inside it; bounded, so that no outlier rules."""
        if not outcome.is_usable:
            return _UNUSABLE
        beyond = outcome.loss - self._budget
        return beyond / (self._scale + abs(beyond))

    def _cost(self, outcome: Outcome) -> float:
        """Unusable ones are as dear as the dearest known."""
        if outcome.is_usable:
            return outcome.cost
        return max((other.cost for other in self._ledger.tried.values() if other.is_usable), default=0.0)


def _sampler(method: str, space: _Space, trials: int, seed: int) -> Any:
    from optuna import samplers

    def constraint(trial: optuna.trial.FrozenTrial) -> tuple[float]:
        return (trial.user_attrs[_EXCESS],)

    if method == "grid":
        return samplers.GridSampler({name: [False, True] for name in space.parameters}, seed=seed)
    if method == "random":
        return samplers.RandomSampler(seed=seed)
    if method == "bayesian":
        return samplers.TPESampler(multivariate=True, constraints_func=constraint, seed=seed)
    # five generations or more: fewer and larger ones are random search
    size = max(4, min(50, trials // 5))
    return samplers.NSGAIISampler(population_size=size, constraints_func=constraint, seed=seed)


@contextmanager
def _silent() -> Iterator[None]:
    """Optuna's log and its warnings of experimental arguments off."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
