"""Which setting to try next: optuna's samplers over a space, asked and told. Runs nothing itself.

A sampler may propose what was measured already: it is told the known result and asked again, so that no trial is
spent twice on one setting.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

from app.tune.space import Parameters, Space

__all__ = ["SEARCHES", "Goals", "Sampler", "Search"]

Search = Literal["grid", "random", "bayesian", "genetic"]
SEARCHES: tuple[str, ...] = get_args(Search)
Goals = tuple[float, float]
"""(p99 in ms, to be small; rows a second at its peak, to be large)."""
_DIMENSIONS = ("lanes", "batch", "delay")
_BEYOND = "beyond"
_REPEATS = 200
"""Proposals of what is known, one after the other, after which a sampler has nothing more to say."""


class Sampler:
    """The first setting is the current one. `trials` sizes the populations of the genetic search."""

    def __init__(
        self, space: Space, search: Search, *, seed: int, trials: int, p99_limit_ms: float | None = None
    ) -> None:
        import optuna  # heavy, and needed by this command alone

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._limit_ms = space, p99_limit_ms
        self._fail = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(
            directions=["minimize", "maximize"], sampler=_sampler(search, space, seed, trials)
        )
        self._study.enqueue_trial(dict(zip(_DIMENSIONS, space.position_of_current(), strict=True)))
        self._known: dict[Parameters, Goals | None] = {}
        self._distinct = space.distinct()
        self._asked: tuple[Any, Parameters] | None = None

    def next(self) -> Parameters | None:
        """A setting that was not measured yet; None where there is none, or the sampler repeats itself."""
        for _ in range(_REPEATS):
            if len(self._known) == self._distinct:
                return None
            trial = self._study.ask()
            sizes = self._space.sizes
            position = [trial.suggest_int(name, 0, n - 1) for name, n in zip(_DIMENSIONS, sizes, strict=True)]
            proposed = self._space.at(*position)
            self._asked = trial, proposed
            if proposed not in self._known:
                return proposed
            self._answer(self._known[proposed])
        return None

    def tell(self, goals: Goals | None) -> None:
        """What came of the setting that `next` gave; None where it failed."""
        assert self._asked is not None, "nothing was asked"
        self._known[self._asked[1]] = goals
        if len(self._known) < self._distinct:  # the grid's sampler would stop a loop that is not there
            self._answer(goals)

    def _answer(self, goals: Goals | None) -> None:
        assert self._asked is not None
        trial, self._asked = self._asked[0], None
        if goals is None or not all(map(math.isfinite, goals)):
            self._study.tell(trial, state=self._fail)
            return
        trial.set_user_attr(_BEYOND, goals[0] - self._limit_ms if self._limit_ms is not None else -1.0)
        self._study.tell(trial, goals)


def _sampler(search: Search, space: Space, seed: int, trials: int) -> Any:
    """Seeded. Settings beyond the limit count as infeasible where a sampler learns."""
    from optuna import samplers

    if search == "grid":
        return samplers.GridSampler({n: range(size) for n, size in zip(_DIMENSIONS, space.sizes, strict=True)}, seed)
    if search == "random":
        return samplers.RandomSampler(seed)
    with warnings.catch_warnings():  # constraints and joint sampling are marked as experimental
        warnings.simplefilter("ignore")
        if search == "bayesian":
            return samplers.TPESampler(
                n_startup_trials=max(3, trials // 3), multivariate=True, seed=seed, constraints_func=_constraints
            )
        return samplers.NSGAIISampler(population_size=max(4, trials // 4), seed=seed, constraints_func=_constraints)


def _constraints(trial: Any) -> tuple[float]:
    """How far beyond the limit, ms; feasible at 0 and below."""
    return (trial.user_attrs[_BEYOND],)
