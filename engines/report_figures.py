"""A report's figures as SVG for one HTML page: its fonts and colours, nothing fetched, the same bytes each time."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.report import Accuracy, Layer, Report, Speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["Figure", "figures"]

_INK, _MUTED, _LINE, _ACCENT, _BAD = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _ACCENT: "--accent", _BAD: "--bad"}
"""Colours stand for variables of the page, so that light and dark need one drawing."""
_WIDTH_IN, _ROW_IN, _POINTS = 4.4, 0.46, 10.5
_MOST_BARS = 9
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: readable by machines, in the page's own font
    "svg.hashsalt": "bitserve",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": _POINTS,
    "axes.edgecolor": _LINE, "axes.labelcolor": _MUTED, "axes.linewidth": 0.8,
    "xtick.color": _LINE, "ytick.color": _LINE, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED,
    "text.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


class Figure(NamedTuple):
    """An SVG element, and what it shows in words."""

    svg: str
    says: str


class _Bar(NamedTuple):
    label: str
    value: float
    text: str


def figures(report: Report) -> dict[str, Figure]:
    """The figures that the report has numbers for: any of `stages`, `speeds`, `differences`, `kernels`."""
    drawn = {
        "stages": _stages(report.stages_s),
        "speeds": _speeds(report.speeds),
        "differences": _differences(report.accuracy),
        "kernels": _kernels(report.layers),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _stages(stages_s: dict[str, float]) -> Figure | None:
    bars = [_Bar(name, seconds, f"{seconds:.2f} s") for name, seconds in stages_s.items()]
    return _bars("stages", bars, "Seconds of each stage of the build")


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
    bars = [_Bar(name, value, _duration(value) if timed else f"{value:.0f}") for name, value in shown]
    return _bars("kernels", bars, "Time in each kernel, one run" if timed else "Operations by kernel")


def _speeds(speeds: tuple[Speed, ...]) -> Figure | None:
    bars = []
    for speed in speeds:
        rows = f"{speed.rows} row{'s' * (speed.rows > 1)} a batch"
        bars.append((_Bar(rows, speed.latency_us, _duration(speed.latency_us)), speed))
    if not bars:
        return None
    rates = [_Bar(bar.label, speed.rows_per_s, f"{speed.rows_per_s:,.0f} rows/s") for bar, speed in bars]

    def draw(drawing: Drawing) -> None:
        upper, lower = drawing.subplots(2, 1)
        _draw_bars(upper, [bar for bar, _ in bars])
        _draw_bars(lower, rates)
        for axes, title in ((upper, "Latency, one request alone"), (lower, "Throughput, all streams")):
            axes.set_title(title, loc="left", fontsize=_POINTS, color=_MUTED, pad=2)

    return _figure("speeds", draw, 2 * (len(bars) * _ROW_IN + 0.32), "Latency and throughput by batch size")


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
        axes.vlines(places, floor, heights, color=_ACCENT, linewidth=max(0.6, min(4.0, 150 / len(heights))))
        axes.plot(places[worst], heights[worst], "o", color=_BAD, markersize=5)
        axes.annotate(
            f"worst: {accuracy.worst[0].index}" if accuracy.worst else "", (places[worst], heights[worst]), (0, 5),
            textcoords="offset points", ha="left" if worst < len(places) / 2 else "right", color=_BAD,
        )  # fmt: skip
        axes.axhline(1.0, color=_BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(floor, ceiling * 2)
        axes.set_xlabel("sample")
        axes.set_ylabel("difference / bound")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return _figure("differences", draw, 2.3, "Difference from the reference at each sample, as a share of its bound")


def _bars(name: str, bars: list[_Bar], says: str) -> Figure | None:
    if not bars:
        return None
    return _figure(name, lambda drawing: _draw_bars(drawing.subplots(), bars), len(bars) * _ROW_IN + 0.1, says)


def _draw_bars(axes: Axes, bars: list[_Bar]) -> None:
    """One thin bar under its label, its value at the right: names may be long and the page narrow."""
    longest = max(bar.value for bar in bars) or 1.0
    for place, bar in enumerate(bars):
        axes.barh(place + 0.34, bar.value / longest, height=0.2, color=_ACCENT)
        axes.barh(place + 0.34, 1, height=0.2, color=_LINE, zorder=0)
        axes.text(0, place - 0.02, _printable(bar.label), va="center")
        axes.text(1, place - 0.02, bar.text, va="center", ha="right", color=_MUTED)
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.35))
    axes.set_axis_off()


def _figure(name: str, draw: Callable[[Drawing], None], height_in: float, says: str) -> Figure:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever settings of a user lie about
        matplotlib.rcParams.update(_SETTINGS)
        drawing = Drawing(figsize=(_WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(drawing)
        draw(drawing)
        written = io.StringIO()
        drawing.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(_as_element(written.getvalue(), name, says), says)


def _as_element(svg: str, name: str, says: str) -> str:
    """The bare element: no prolog, no size of its own, ids that do not clash with another figure's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{says}"', 1)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()


def _printable(text: str) -> str:
    """ASCII of a bounded length: a glyph that the measuring font lacks would be warned of."""
    clean = "".join(sign if " " <= sign <= "~" else "?" for sign in text)
    return clean if len(clean) <= 34 else f"{clean[:33]}~"


def _duration(us: float) -> str:
    return f"{us:.0f} \u00b5s" if us < 1000 else f"{us / 1000:.2f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"
