"""The figure of what was tried: what each engine loses against what it costs, the front, the budget, the choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engines.report import Report
from engines.report_candidates import Place, axis_of, chosen_of, places
from engines.report_drawing import ACCENT, BAD, CARD, GOOD, INK, MUTED, POINTS, Figure, draw_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["search_figure"]

_HEIGHT_IN, _LEGEND_LINE_IN = 2.6, 0.24
_CELLS = 150
"""Along each axis: of points in one cell, which is half as wide as a point, one is drawn."""
_SPREAD = 6.0
"""Losses beyond this many budgets stand on a logarithmic axis, so that those near the budget can be told apart."""
_MOST_DECADES = 5
_ALONG = 25
_LABEL = "chosen"
_LABEL_WIDTH, _LABEL_HEIGHT, _LABEL_GAP = 0.19, 0.12, 0.035
"""As shares of the axes, from the size of the type."""


class _Style(NamedTuple):
    words: str
    marker: str
    size: float
    edge: str
    face: str
    alpha: float = 1.0


_STYLES = {
    (False, True): _Style("passed", "o", 5.5, ACCENT, ACCENT),
    (False, False): _Style("failed", "o", 5.5, BAD, "none"),
    (True, True): _Style("trial, passed", "o", 3.2, ACCENT, ACCENT, 0.6),
    (True, False): _Style("trial, failed", "o", 3.2, BAD, BAD, 0.6),
}
"""By whether it is a trial, and whether it passed."""


def search_figure(report: Report) -> Figure | None:
    """None for fewer than two engines that have both figures."""
    points = places(report)
    if len(points) < 2:
        return None
    axis, styles = axis_of(report), _styles_of(points)
    front = _front(points, is_more_better=axis.is_more_better)
    lines = math.ceil((len(styles) + 2) / 3)

    def draw(drawing: Drawing) -> None:
        axes = drawing.subplots()
        _scale(axes, report, points)
        chosen = chosen_of(report)
        _draw_points(axes, points, styles)
        _draw_front(axes, front)
        if report.budget is not None:
            axes.axhline(
                report.budget, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"budget {report.budget:.3g}"
            )
        for place in points:
            if place.candidate is chosen:
                _mark(axes, place, points, front, report.budget)
                break
        axes.set_xlabel(f"{axis.words} ({'more' if axis.is_more_better else 'less'} is better)")
        axes.set_ylabel("loss")
        drawing.legend(
            loc="outside upper left", ncols=3, frameon=False, fontsize=POINTS - 1.5, labelcolor=MUTED, borderpad=0,
            handlelength=1.4, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2,
        )  # fmt: skip

    return draw_figure("search", draw, _HEIGHT_IN + lines * _LEGEND_LINE_IN, f"Loss against {axis.short}, by engine")


def _styles_of(points: Iterable[Place]) -> list[tuple[bool, bool]]:
    """Those that are needed; trials first, so that the others lie over them."""
    return sorted({_kind(place) for place in points}, reverse=True)


def _kind(place: Place) -> tuple[bool, bool]:
    return place.candidate.trial, place.candidate.passed


def _scale(axes: Axes, report: Report, points: Sequence[Place]) -> None:
    """Limits and ticks, before anything is drawn."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    losses = [place.loss for place in points]
    low, high = min([0.0, *losses]), max([report.budget or 0.0, *losses])
    linear = report.budget or min([loss for loss in losses if loss > 0], default=1.0)
    if max(high, -low) > _SPREAD * linear:
        axes.set_yscale("symlog", linthresh=linear)
        axes.set_yticks(_decades(low, high, linear))
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    down, up = axes.transScale.transform([(0, low), (0, high)])[:, 1]
    back = axes.transScale.inverted().transform([(0, edge) for edge in _with_margins([down, up])])
    axes.set_ylim(*back[:, 1])
    left, right = _with_margins([place.x for place in points])
    axes.set_xlim(left, right)
    unit, name = axis_of(report).unit_for(right)
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(left / unit, right / unit)]
    inside = [tick for tick in ticks if tick >= 0 and left <= tick * unit <= right]
    axes.set_xticks([tick * unit for tick in inside], [f"{tick:,.6g}{name}" for tick in inside])


def _decades(low: float, high: float, linear: float) -> list[float]:
    """Ticks at 0 and at powers of ten beyond `linear`, few enough to be read."""
    first = math.ceil(math.log10(linear) - 1e-9)
    above = range(first, max(first, math.floor(math.log10(max(high, linear)))) + 1)
    below = range(first, max(first, math.floor(math.log10(max(-low, linear)))) + 1) if low < -linear else range(0)
    step = math.ceil((len(above) + len(below)) / _MOST_DECADES) or 1
    return [*(-(10.0**power) for power in below[::step]), 0.0, *(10.0**power for power in above[::step])]


def _with_margins(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_points(axes: Axes, points: Sequence[Place], styles: Iterable[tuple[bool, bool]]) -> None:
    for kind in styles:
        style = _STYLES[kind]
        kept = _told_apart(axes, [place for place in points if _kind(place) == kind])
        axes.plot(
            [place.x for place in kept], [place.loss for place in kept], linestyle="none", marker=style.marker,
            markersize=style.size, markeredgecolor=style.edge, markerfacecolor=style.face, label=style.words,
            alpha=style.alpha, markeredgewidth=0 if style.alpha < 1 else 1, clip_on=False, zorder=2 if kind[0] else 3,
        )  # fmt: skip


def _told_apart(axes: Axes, points: Sequence[Place]) -> list[Place]:
    """One point of each cell, so that ten thousand make no page of megabytes."""
    cells: dict[tuple[int, int], Place] = {}
    for place, (x, y) in zip(points, _shares(axes, points), strict=True):
        cells.setdefault((round(x * _CELLS), round(y * _CELLS)), place)
    return list(cells.values())


def _shares(axes: Axes, points: Sequence[Place]) -> list[tuple[float, float]]:
    """Where the points are, as shares of the axes."""
    if not points:
        return []
    to_axes = axes.transScale + axes.transLimits
    return [(float(x), float(y)) for x, y in to_axes.transform([(place.x, place.loss) for place in points])]


def _front(points: Iterable[Place], *, is_more_better: bool) -> list[Place]:
    """From the cheapest engine on."""
    front = [place for place in points if place.candidate.on_front]
    return sorted(front, key=lambda place: place.x, reverse=is_more_better)


def _draw_front(axes: Axes, front: Sequence[Place]) -> None:
    """Steps: each engine holds until the next one loses less."""
    if len(front) > 1:
        axes.plot(
            [place.x for place in front], [place.loss for place in front], drawstyle="steps-post", color=INK,
            linewidth=1.1, zorder=2.5, label="front",
        )  # fmt: skip


def _mark(axes: Axes, chosen: Place, points: Sequence[Place], front: Sequence[Place], budget: float | None) -> None:
    """A ring around it, and its label where least else is."""
    for colour, width in ((CARD, 4.0), (GOOD, 1.8)):
        axes.plot(
            chosen.x, chosen.loss, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour,
            markeredgewidth=width, clip_on=False, zorder=4,
        )  # fmt: skip
    here = _shares(axes, [chosen])[0]
    ends = [] if budget is None else [Place(x, budget, chosen.candidate) for x in axes.get_xlim()]
    lines = [*_along(_shares(axes, front)), *_along(_shares(axes, ends))]
    x, y = _freest(here, [*_shares(axes, points), *lines])
    axes.text(
        x, y, _LABEL, transform=axes.transAxes, ha="center", va="center", color=GOOD, weight="bold",
        bbox={"facecolor": CARD, "edgecolor": "none", "alpha": 0.8, "pad": 1}, zorder=5,
    )  # fmt: skip


def _along(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along the steps, so near to each other that a label over the line covers some."""
    found = []
    for (x, y), (next_x, next_y) in itertools.pairwise(front):
        for i in range(_ALONG):
            part = i / (_ALONG - 1)
            found += [(x + part * (next_x - x), y), (next_x, y + part * (next_y - y))]
    return found


def _freest(here: tuple[float, float], others: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The middle of a label beside `here`, all as shares of the axes: inside them, and over as little as can be."""
    wide, high = _LABEL_WIDTH / 2, _LABEL_HEIGHT / 2
    aside, above = wide + _LABEL_GAP, high + _LABEL_GAP

    def covered(middle: tuple[float, float]) -> tuple[bool, int]:
        x, y = middle
        is_over_itself = abs(here[0] - x) < wide and abs(here[1] - y) < high
        return is_over_itself, sum(abs(a - x) < wide and abs(b - y) < high for a, b in others)

    steps = [(0.0, above), (0.0, -above), *itertools.product((aside, -aside), (0.0, above, -above))]
    middles = [(_within(here[0] + dx, wide), _within(here[1] + dy, high)) for dx, dy in steps]
    return min(middles, key=covered)


def _within(middle: float, half: float) -> float:
    return min(max(middle, half), 1 - half)
