"""The whole search: trials as a sampler proposes them, then the best ones again in turn with the current setting."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.tune.errors import TuneFailed
from app.tune.sampling import Goals, Sampler
from app.tune.space import Parameters
from app.tune.verdict import Measured, best, finalists

__all__ = ["FINALISTS", "ROUNDS", "Found", "leaves_time", "search"]

ROUNDS = 3
FINALISTS = 2
Run = Callable[[Parameters], Measured]
Say = Callable[[str, int], None]


@dataclass(frozen=True)
class Found:
    """`trials[0]` is the current setting. `rounds`: of the current setting and then of each finalist, `ROUNDS` runs.

    `best` None: nothing was found to be better. `unconfirmed`: the time was up before the rounds were done.
    """

    trials: tuple[Measured, ...]
    rounds: tuple[tuple[Measured, ...], ...]
    best: Parameters | None
    unconfirmed: bool


def leaves_time(spent_s: float, longest_trial_s: float, limit_s: float) -> bool:
    """Whether another trial may start: the rounds that follow have to fit into the limit too."""
    return spent_s + longest_trial_s * (1 + ROUNDS * (1 + FINALISTS)) <= limit_s


def search(
    run: Run, sampler: Sampler, trials: int, time_limit_s: float, p99_limit_ms: float | None, say: Say,
    clock: Callable[[], float] = time.monotonic,
) -> Found:  # fmt: skip
    """At most `trials` settings, the current one first. `say` is told what is run, and how many runs were done.

    Raises TuneFailed where the current setting cannot be run.
    """
    started_s, longest_s = clock(), 0.0
    done: list[Measured] = []
    while len(done) < trials and (not done or leaves_time(clock() - started_s, longest_s, time_limit_s)):
        parameters = sampler.next()
        if parameters is None:
            break
        say(f"trial {len(done) + 1}", len(done))
        before_s = clock()
        done.append(run(parameters) if not done else _tried(run, parameters))
        longest_s = max(longest_s, clock() - before_s)
        sampler.tell(_goals(done[-1]))
    chosen = finalists(done, p99_limit_ms, FINALISTS)
    settings = [done[0].parameters, *chosen] if chosen else []
    rounds: list[list[Measured]] = [[] for _ in settings]
    for number in range(ROUNDS if settings else 0):
        if clock() - started_s + longest_s * len(settings) > time_limit_s:
            return Found(tuple(done), _frozen(rounds), None, True)
        for index, setting in enumerate(settings):
            say(f"round {number + 1} of {ROUNDS}", len(done) + number * len(settings) + index)
            rounds[index].append(_tried(run, setting))
    winner = best(rounds[0], rounds[1:], p99_limit_ms) if rounds else None
    return Found(tuple(done), _frozen(rounds), winner, False)


def _tried(run: Run, parameters: Parameters) -> Measured:
    """A setting under which nothing can be served is a failure of that setting alone."""
    try:
        return run(parameters)
    except TuneFailed as error:
        return Measured(parameters, 0, 1, str(error), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _frozen(rounds: Sequence[Sequence[Measured]]) -> tuple[tuple[Measured, ...], ...]:
    return tuple(tuple(runs) for runs in rounds)


def _goals(trial: Measured) -> Goals | None:
    return None if trial.failures or not trial.peak_rows_per_s else (trial.p99_ms, trial.peak_rows_per_s)
