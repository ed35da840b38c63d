"""Find which layers may take the low precision so that the cheapest assignment within a budget of loss is among those
tried. Pure: it measures through the caller's function and reads the caller's clock.

`greedy` asks for few measurements. The others sample (see `engines.samplers`); the last quarter of their limits puts
layers of their samples back to the low precision, the cheapest sample first, for samplers seldom hit the last layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from engines import samplers
from engines.trials import Evaluate, Ledger, Outcome, Spent, Trial, choose, holds, pareto_front, ranked

__all__ = ["Method", "Outcome", "Trial", "choose", "pareto_front", "ranked", "search"]

Method = Literal["greedy", "grid", "random", "bayesian", "genetic"]
_RANKING = 0.5
"""Share of the limits that greedy may use to find out which layers do the damage."""
_SAMPLING = 0.75
Holds = Callable[[frozenset[str]], bool]


def search(
    layers: Sequence[str], evaluate: Evaluate, budget: float, *, method: Method, trials: int, time_limit_s: float,
    seed: int = 0, sensitivity: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic,
) -> list[Trial]:  # fmt: skip
    """Try assignments of a precision to each of `layers`, and return all that were tried, in their order.

    `evaluate` takes the layers kept in float; it is called once for an assignment, and what it refuses with
    ModelRefused is unusable. The first assignment is "all low"; where that loses more than `budget`, "all float" is
    the second, also where a limit is reached by then. Beside that one no measurement begins after `trials` of them
    or `time_limit_s` seconds. `sensitivity` is the damage that each layer does in the low precision, in any unit;
    without it, greedy measures it. The same `seed` gives the same search. Greedy ends at "all low" where that holds
    the budget; the others go on to look for something cheaper.

    Raises ValueError for limits that allow nothing, a name given twice, an unknown method, and a layer without
    sensitivity.
    """
    if len(set(layers)) < len(layers):
        raise ValueError("layers: some name is given twice; each layer is searched once")
    if sensitivity is not None and not set(layers) <= set(sensitivity):
        raise ValueError(f"sensitivity: {sorted(set(layers) - set(sensitivity))[0]!r} is missing")
    if method != "greedy" and method not in samplers.METHODS:
        raise ValueError(f"method is {method!r}; known are greedy, {', '.join(samplers.METHODS)}")
    ledger = Ledger(evaluate, trials=trials, time_limit_s=time_limit_s, clock=clock)
    is_held = holds(ledger.measure_anyway(frozenset()), budget)
    if not is_held:
        ledger.measure_anyway(frozenset(layers))
    if method != "greedy":
        _sampled(ledger, layers, budget, method, seed, sensitivity)
    elif not is_held:
        _greedy(ledger, layers, budget, sensitivity)
    return ledger.trials()


def _greedy(ledger: Ledger, layers: Sequence[str], budget: float, sensitivity: Mapping[str, float] | None) -> None:
    """Keep the most damaging layers in float, as few as it takes, then put back those that were not needed."""
    order = _most_damaging_first(layers, sensitivity or _measured(ledger, layers))

    def is_held(kept: frozenset[str]) -> bool:
        return holds(ledger.measure(kept), budget)

    with suppress(Spent):
        kept = _shortest(order, is_held)
        if kept:
            _put_back(kept, is_held)


def _sampled(
    ledger: Ledger, layers: Sequence[str], budget: float, method: str, seed: int,
    sensitivity: Mapping[str, float] | None,
) -> None:  # fmt: skip
    is_exhaustive = 1 << len(layers) <= ledger.left + len(ledger.tried)
    with ledger.part(1.0 if is_exhaustive else _SAMPLING):
        samplers.explore(ledger, layers, budget, method=method, seed=seed, sensitivity=sensitivity)
    good = [trial for trial in ledger.trials() if holds(trial.outcome, budget)]
    order = _most_damaging_first(layers, sensitivity or _estimated(ledger, layers))
    with suppress(Spent):
        for trial in sorted(good, key=lambda trial: trial.outcome.cost):
            _put_back([name for name in order if name in trial.kept], lambda kept: holds(ledger.measure(kept), budget))


def _most_damaging_first(layers: Sequence[str], damage: Mapping[str, float]) -> list[str]:
    """Equal ones in the order of `layers`. What is not a number counts as the worst."""
    return sorted(layers, key=lambda name: math.inf if math.isnan(damage[name]) else damage[name], reverse=True)


def _measured(ledger: Ledger, layers: Sequence[str]) -> dict[str, float]:
    """The loss with each layer alone in the low precision, all others in float.

    The other way, each alone kept in float, takes as many measurements and tells less: where two layers spoil the
    answers, they are as bad with one of the two mended. Neighbours are measured together where half the trials are
    fewer than the layers; what the limits leave unmeasured counts as the worst.
    """
    damage = dict.fromkeys(layers, math.inf)
    every = frozenset(layers)
    with ledger.part(_RANKING):
        for group in samplers.tied(layers, ledger.left):
            outcome = ledger.measure(every.difference(group))
            if outcome.is_usable:
                damage |= dict.fromkeys(group, outcome.loss)
    return damage


def _estimated(ledger: Ledger, layers: Sequence[str]) -> dict[str, float]:
    """By how much the mean loss of the trials with a layer in the low precision exceeds that of those without."""
    trials = [trial for trial in ledger.trials() if trial.outcome.is_usable]

    def mean(losses: list[float]) -> float:
        return sum(losses) / len(losses) if losses else 0.0

    return {
        name: mean([trial.outcome.loss for trial in trials if name not in trial.kept])
        - mean([trial.outcome.loss for trial in trials if name in trial.kept])
        for name in layers
    }


def _shortest(order: Sequence[str], is_held: Holds) -> list[str]:
    """The first layers of `order` that hold the budget, and do so no more with one fewer; empty where not even all do.

    Doubles the count until the budget holds, then halves the gap. What is returned was measured to hold; that nothing
    shorter holds is sure only where the loss never grows with one more layer in float.
    """
    failing, held = 0, 1
    while not is_held(frozenset(order[:held])):
        if held >= len(order):
            return []
        failing, held = held, held * 2
    held = min(held, len(order))
    while held - failing > 1:
        middle = (failing + held) // 2
        failing, held = (failing, middle) if is_held(frozenset(order[:middle])) else (middle, held)
    return list(order[:held])


def _put_back(kept: Sequence[str], is_held: Holds) -> None:
    """Take layers out of `kept` (most damaging first), the least damaging first, for as long as the budget holds.

    After a layer that could go, twice as many are tried at once; where the budget breaks, halving finds the layer that
    has to stay. So many needless layers cost few measurements, and a needed one costs no more than one by one.
    """
    staying, waiting = frozenset(kept), list(reversed(kept))
    size = 1
    while waiting:
        block, waiting = waiting[:size], waiting[size:]
        if is_held(staying.difference(block)):
            staying, size = staying.difference(block), size * 2
            continue
        while len(block) > 1:
            half, rest = block[: len(block) // 2], block[len(block) // 2 :]
            if is_held(staying.difference(half)):
                staying, block = staying.difference(half), rest
            else:
                block, waiting = half, rest + waiting
        size = 1
