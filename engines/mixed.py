"""Where INT8 loses too much: put layers back to float until it does not, and keep the cheapest that was found."""

from __future__ import annotations

import functools
import itertools
import time

from engines.choice import Subject
from engines.errors import ModelRefused
from engines.passes.float_layers import float_layers, quantized_layers
from engines.search import Outcome, Trial, choose, search
from engines.spec import Spec
from engines.tryouts import Tried, Tryouts
from engines.variants import Variant

__all__ = ["try_mixed"]

_STRICTER = {1.0: "", 0.5: ", by half the budget"}
"""Shares of the budget: the search judges by some of the samples, and all of them may tell otherwise."""


def try_mixed(tryouts: Tryouts, start: Tried, subject: Subject, spec: Spec, time_limit_s: float) -> None:
    """Search from the INT8 engine `start` over one precision per layer; what it finds is tried on all samples."""
    ends_s = time.monotonic() + time_limit_s
    layers = quantized_layers(start.variant.model)
    origin = start.variant.origin or subject.model
    few = tryouts.few()

    numbers = itertools.count(1)

    def variant_of(kept: frozenset[str], trial: str = "") -> Variant:
        model = float_layers(start.variant.model, origin, kept)
        name = f"mixed, {len(layers) - len(kept)} of {len(layers)} layers of {start.variant.name}{trial}"
        return start.variant._replace(name=name, precision="mixed", model=model, kept=kept)

    @functools.cache
    def evaluate(kept: frozenset[str]) -> Outcome:
        if len(kept) == len(layers):
            return Outcome(0.0, tryouts.cost(tryouts.tried[0]))
        try:
            variant = variant_of(kept, f" (trial {next(numbers)})")
        except Exception as error:
            raise ModelRefused(f"these layers cannot be put back to float: {error}") from error
        tried = tryouts.glimpse(variant, few)
        return Outcome(tryouts.loss(tried), tryouts.cost(tried))

    for share, how in _STRICTER.items():
        left_s, left = ends_s - time.monotonic(), spec.trials - evaluate.cache_info().misses
        if left_s <= 0 or left <= 0:
            break
        budget = tryouts.budget(start) * share
        trials = search(layers, evaluate, budget, method=spec.search, trials=left, time_limit_s=left_s, seed=spec.seed)
        tryouts.notes.append(_told(trials, layers, spec))
        best = choose([trial for trial in trials if 0 < len(trial.kept) < len(layers)], budget)
        if best is None:
            break
        found = tryouts.attempt(variant_of(best.kept, how))
        if found is not None and found.passed:
            return
    raise ModelRefused("no assignment of INT8 and float to layers was found that holds the budget")


def _told(trials: list[Trial], layers: list[str], spec: Spec) -> str:
    return f"INT8 loses too much: {spec.search} search tried {len(trials)} assignments of INT8 to {len(layers)} layers"
