"""A report's figures for one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from engines.report import Accuracy, Layer, Report, Speed
from engines.report_drawing import (
    ACCENT,
    BAD,
    CARD,
    MUTED,
    POINTS,
    ROW_IN,
    Bar,
    Figure,
    bar_figure,
    draw_bars,
    draw_figure,
    duration,
)  # fmt: skip
from engines.report_search import search_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["figures"]

_MOST_BARS = 9
_LEAST_SHOWN_S = 0.01


def figures(report: Report) -> dict[str, Figure]:
    """The figures that the report has numbers for: any of `stages`, `speeds`, `differences`, `kernels`,
    `search`.
    """
    drawn = {
        "stages": _stages(report.stages_s),
        "speeds": _speeds(report.speeds),
        "differences": _differences(report.accuracy),
        "kernels": _kernels(report.layers),
        "search": search_figure(report),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _stages(stages_s: dict[str, float]) -> Figure | None:
    seen = {name: seconds for name, seconds in stages_s.items() if seconds >= _LEAST_SHOWN_S}
    bars = [Bar(name, seconds, f"{seconds:.2f} s") for name, seconds in seen.items()]
    return bar_figure("stages", bars, "Seconds of each stage of the build")


def _kernels(layers: Iterable[Layer]) -> Figure | None:
    """By time where it was measured, else by how many operations use each kernel."""
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for layer in layers:
        counts[layer.kernel or "unnamed"] += 1
        times[layer.kernel or "unnamed"] += layer.time_us or 0.0  # type: ignore[assignment]  # a Counter adds floats too
    timed = times.total() > 0
    found = [(name, float(value)) for name, value in (times if timed else counts).most_common() if value]
    shown = found if len(found) <= _MOST_BARS else found[: _MOST_BARS - 1]
    rest = sum(value for _, value in found[len(shown) :])
    if rest:
        shown = [*shown, (f"{len(found) - len(shown)} others", rest)]
    bars = [Bar(name, value, duration(value) if timed else f"{value:.0f}") for name, value in shown]
    return bar_figure("kernels", bars, "Time in each kernel, one run" if timed else "Operations by kernel")


def _speeds(speeds: tuple[Speed, ...]) -> Figure | None:
    bars = []
    for speed in speeds:
        rows = f"{speed.rows} row{'s' * (speed.rows > 1)} a batch"
        bars.append((Bar(rows, speed.latency_us, duration(speed.latency_us)), speed))
    if not bars:
        return None
    rates = [Bar(bar.label, speed.rows_per_s, f"{speed.rows_per_s:,.0f} rows/s") for bar, speed in bars]

    def draw(drawing: Drawing) -> None:
        upper, lower = drawing.subplots(2, 1)
        draw_bars(upper, [bar for bar, _ in bars])
        draw_bars(lower, rates)
        for axes, title in ((upper, "Latency, one request alone"), (lower, "Throughput, all streams")):
            axes.set_title(title, loc="left", fontsize=POINTS, color=MUTED, pad=2)

    return draw_figure("speeds", draw, 2 * (len(bars) * ROW_IN + 0.32), "Latency and throughput by batch size")


def _differences(accuracy: Accuracy) -> Figure | None:
    if not any(share != 0 for share in accuracy.shares):
        return None
    finite = [share for share in accuracy.shares if share]
    floor = min([*finite, 1.0]) / 3  # zeros stand at the lower edge of a logarithmic axis
    ceiling = max([*finite, 1.0]) * 3
    heights = [ceiling if share is None else max(share, floor) for share in accuracy.shares]
    places = [i * accuracy.samples_per_share for i in range(len(heights))]
    worst = accuracy.worst[0].index // accuracy.samples_per_share if accuracy.worst else 0

    def draw(drawing: Drawing) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

        axes = drawing.subplots()
        axes.set_yscale("log")
        axes.vlines(places, floor, heights, color=ACCENT, linewidth=max(0.6, min(4.0, 150 / len(heights))))
        axes.plot(places[worst], heights[worst], "o", color=BAD, markersize=5)
        axes.annotate(
            f"worst: {accuracy.worst[0].index}" if accuracy.worst else "", (places[worst], heights[worst]), (0, 5),
            textcoords="offset points", ha="left" if worst < len(places) / 2 else "right", color=BAD,
            bbox={"facecolor": CARD, "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
        axes.axhline(1.0, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(floor, ceiling * 2)
        axes.set_xlabel("sample")
        axes.set_ylabel("difference / bound")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return draw_figure(
        "differences", draw, 2.3, "Difference from the reference at each sample, as a share of its bound"
    )
