"""Which trials count, which are on the front, and what may be called better. Pure.

The two objectives are the p99 under the given load, and the rows a second at the peak: with requests always waiting, on
the same server right after. The one is what a client feels now, the other how far the load could grow. The peak is the
end of what can be sustained, not a rate that holds the limit: at it, all requests wait. With a limit the choice is the
highest peak among what holds the limit under the load, without one it is the lowest p99.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.tune.space import Parameters

__all__ = ["Measured", "Medians", "best", "finalists", "front", "is_better", "medians_of", "qualifies"]

_WORTH = 1.05
"""A gain below it is not called one."""


@dataclass(frozen=True)
class Measured:
    """One trial. Latencies in ms, of answers with outputs, from when a request was due; 0 where there were none."""

    parameters: Parameters
    requests: int
    failures: int
    why: str
    p50_ms: float
    p99_ms: float
    rows_per_s: float
    peak_rows_per_s: float
    cpu_ms_per_row: float
    late_ms: float

    def document(self) -> dict[str, Any]:
        """As JSON; rounded to what the measurement can carry."""
        values = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return {**values, "parameters": self.parameters.document()}


@dataclass(frozen=True)
class Medians:
    """Over the rounds of one setting; `failures` is their sum."""

    failures: int
    p50_ms: float
    p99_ms: float
    peak_rows_per_s: float
    cpu_ms_per_row: float


def qualifies(trial: Measured | Medians, p99_limit_ms: float | None) -> bool:
    """No failures, and a p99 within the limit where there is one."""
    return not trial.failures and trial.p99_ms > 0 and (p99_limit_ms is None or trial.p99_ms <= p99_limit_ms)


def front(trials: Sequence[Measured], p99_limit_ms: float | None) -> list[Measured]:
    """Those that qualify and that no other one beats in both objectives (or in one, equal in the other); by p99."""
    able = [trial for trial in trials if qualifies(trial, p99_limit_ms)]
    kept = [trial for trial in able if not any(_dominates(other, trial) for other in able)]
    return sorted(kept, key=lambda trial: trial.p99_ms)


def _dominates(one: Measured, other: Measured) -> bool:
    no_worse = one.p99_ms <= other.p99_ms and one.peak_rows_per_s >= other.peak_rows_per_s
    return no_worse and (one.p99_ms, one.peak_rows_per_s) != (other.p99_ms, other.peak_rows_per_s)


def _cost(trial: Measured | Medians, p99_limit_ms: float | None) -> float:
    """What is to be small: the time of a row at the peak where there is a limit, else the p99."""
    if p99_limit_ms is None:
        return trial.p99_ms
    return 1 / trial.peak_rows_per_s if trial.peak_rows_per_s else float("inf")


def finalists(trials: Sequence[Measured], p99_limit_ms: float | None, count: int = 2) -> list[Parameters]:
    """The best settings by one trial each, to be measured again beside the first, which is the current one."""
    able = [trial for trial in trials[1:] if qualifies(trial, p99_limit_ms)]
    able.sort(key=lambda trial: _cost(trial, p99_limit_ms))
    return [trial.parameters for trial in able[:count]]


def medians_of(rounds: Sequence[Measured]) -> Medians:
    """Of one setting's rounds."""

    def middle(name: str) -> float:
        return float(statistics.median(getattr(trial, name) for trial in rounds))

    failures = sum(trial.failures for trial in rounds)
    return Medians(failures, middle("p50_ms"), middle("p99_ms"), middle("peak_rows_per_s"), middle("cpu_ms_per_row"))


def is_better(current: Sequence[Measured], other: Sequence[Measured], p99_limit_ms: float | None) -> bool:
    """Whether a setting may be called better, by rounds that were run in turn with the current one.

    It has to qualify by its medians; where the current one does not, that is enough. Else its median is at least 5 %
    better, and it was better in every round: a single disturbed run must not decide.
    """
    ours, now = medians_of(other), medians_of(current)
    if not qualifies(ours, p99_limit_ms):
        return False
    if not qualifies(now, p99_limit_ms):
        return True
    wins = all(_cost(b, p99_limit_ms) < _cost(a, p99_limit_ms) for a, b in zip(current, other, strict=True))
    return wins and _cost(ours, p99_limit_ms) * _WORTH <= _cost(now, p99_limit_ms)


def best(
    current: Sequence[Measured], others: Sequence[Sequence[Measured]], p99_limit_ms: float | None
) -> Parameters | None:
    """The best of those that may be called better; None where none may."""
    able = [rounds for rounds in others if is_better(current, rounds, p99_limit_ms)]
    chosen = min(able, key=lambda rounds: _cost(medians_of(rounds), p99_limit_ms), default=None)
    return chosen[0].parameters if chosen else None
