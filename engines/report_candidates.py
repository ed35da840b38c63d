"""Which of the engines that were tried a page shows, and by what they are compared. Pure choices over a report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from engines.report import Candidate, Report

__all__ = [
    "Axis", "Place", "Shown", "axis_of", "chosen_of", "held_loss", "is_coarse", "is_elsewhere", "places", "shown",
]  # fmt: skip

_FP32 = "fp32"
"""Name of the candidate that is the model as it was sent; a pruned one of this precision has another."""
_MOST_ROWS, _BEST_TRIALS = 100, 5


class Axis(NamedTuple):
    """What the objective measures. `of` is None where it was not measured."""

    words: str
    short: str
    of: Callable[[Candidate], float | None]
    units: tuple[tuple[float, str], ...]
    """Sizes of the units in which it is told, and their names, the largest first."""
    is_more_better: bool = False

    def unit_for(self, largest: float) -> tuple[float, str]:
        """The unit for numbers up to this one."""
        return next((unit for unit in self.units if unit[0] <= largest), self.units[-1])


_TIMES = ((1e6, " s"), (1e3, " ms"), (1, " \u00b5s"))
_SIZES = ((2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1, " bytes"))
_THROUGHPUT = Axis("rows/s", "rows/s", lambda candidate: candidate.rows_per_s, ((1, ""),), is_more_better=True)
_AXES = {
    "latency": Axis("latency of one row alone", "latency", lambda candidate: candidate.latency_us, _TIMES),
    "throughput": _THROUGHPUT,
    "size": Axis("size of the engine", "size", lambda candidate: candidate.size_bytes or None, _SIZES),
}


class Place(NamedTuple):
    """A candidate where the plot has it: `x` on the objective's axis, `loss` as it was held against the budget."""

    x: float
    loss: float
    candidate: Candidate


class Shown(NamedTuple):
    """Candidates for a table: those that were judged in full, as they were tried, then trials, the best first."""

    rows: tuple[Candidate, ...]
    left_out: int


def axis_of(report: Report) -> Axis:
    """The axis of what was asked for; throughput where nothing was."""
    return _AXES.get(str(report.spec.get("objective")), _THROUGHPUT)


def chosen_of(report: Report) -> Candidate | None:
    """The candidate whose engine serves; None where none passed."""
    return next((one for one in report.candidates if _is_chosen(report, one)), None)


def held_loss(report: Report, candidate: Candidate) -> float | None:
    """What was held against the budget: the loss, or the share of decisions that changed where these count and it is
    larger.
    """
    if candidate.loss is None or not report.decisions_count:
        return candidate.loss
    return max(candidate.loss, (candidate.decisions_changed or 0) / max(1, candidate.samples))


def places(report: Report) -> list[Place]:
    """Of every candidate that has both figures; those of another target are compared with no others."""
    axis, found = axis_of(report), []
    for candidate in report.candidates:
        x, loss = axis.of(candidate), held_loss(report, candidate)
        if x is not None and loss is not None and math.isfinite(x) and math.isfinite(loss):
            found.append(Place(x, loss, candidate))
    return [place for place in found if not is_elsewhere(report, place.candidate)]


def is_elsewhere(report: Report, candidate: Candidate) -> bool:
    """Whether another target runs it than the one of this build, which the first candidate is for."""
    return candidate.target != report.candidates[0].target


def is_coarse(report: Report) -> bool:
    """Whether the engine chosen has fewer bits or fewer weights than the model that was sent."""
    chosen = chosen_of(report)
    return chosen is not None and chosen.name != _FP32


def shown(report: Report) -> Shown:
    """The chosen one, the front, all that are not trials, and the best few trials; never more than 100."""
    candidates = report.candidates
    trials = sorted((i for i, one in enumerate(candidates) if one.trial), key=lambda i: _merit(report, candidates[i]))
    marked = [i for i, one in enumerate(candidates) if one.on_front or _is_chosen(report, one)]
    marked.sort(key=lambda i: not _is_chosen(report, candidates[i]))
    full = [i for i, one in enumerate(candidates) if not one.trial]
    wanted = list(dict.fromkeys([*marked, *full, *trials[:_BEST_TRIALS]]))[:_MOST_ROWS]
    ranks = {i: rank for rank, i in enumerate(trials)}
    rows = sorted(wanted, key=lambda i: (candidates[i].trial, ranks.get(i, i)))
    return Shown(tuple(candidates[i] for i in rows), len(candidates) - len(rows))


def _is_chosen(report: Report, candidate: Candidate) -> bool:
    return candidate.passed and candidate.name == report.chosen


def _merit(report: Report, candidate: Candidate) -> tuple[bool, float, float]:
    """For sorting, the best first: those that passed, by the objective, then by what they lose."""
    axis = axis_of(report)
    x, loss = axis.of(candidate), held_loss(report, candidate)
    cost = math.inf if x is None else -x if axis.is_more_better else x
    return not candidate.passed, cost, math.inf if loss is None else loss
