"""The figures of a run as one SVG: latency and throughput over the levels, where time went, how large batches were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.bench.percentiles import NAMES
from app.bench.words import grouped, heading, level_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "bitserve", "text.parse_math": False, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
}  # fmt: skip
_PERCENTILES = {"p50": "#9ecae1", "p90": "#6baed6", "p95": "#4292c6", "p99": "#2171b5", "p99.9": "#08306b"}
_PARTS = {"queue": "#b3702f", "compute": "#2f6fb3", "other": "#bbbbbb"}
_INK, _ASKED = "#1b7f5c", "#888888"
_WIDTH_IN, _PANEL_IN = 9.6, 3.1
_BAR = 0.66


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Levels without an answer are left out; so are the server's panels where it told nothing. Raises OSError."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    levels = [level for level in document["levels"] if level["latency_ms"] is not None]
    told = [level for level in levels if level["server"] is not None]
    lines = 2 if told else 1
    with matplotlib.rc_context(_SETTINGS):
        drawing = Figure(figsize=(_WIDTH_IN, lines * _PANEL_IN + 0.5), layout="constrained")
        FigureCanvasSVG(drawing)
        panels = drawing.subplots(lines, 2, squeeze=False)
        _latencies(panels[0][0], levels)
        _throughput(panels[0][1], levels, document["rows"])
        if told:
            _parts(panels[1][0], told)
            _batches(panels[1][1], told)
        for row, shown in zip(panels, (levels, told), strict=False):
            for axes in row:
                _over_levels(axes, shown)
        title, _, rest = heading(document).partition(": ")
        drawing.suptitle(f"{title}\n{rest}", fontsize=9, x=0.01, ha="left")
        drawing.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def _over_levels(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    """Levels stand side by side in their order, whatever lies between their numbers."""
    names = [level_name(level) for level in levels]
    crowded = sum(len(name) + 2 for name in names) > 48
    axes.set_xticks(range(len(names)), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.5, len(names) - 0.5)
    is_closed = levels[0]["concurrency"] is not None
    axes.set_xlabel("concurrency (requests under way)" if is_closed else "rate asked for (requests/s)")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _latencies(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    for name in NAMES:
        values = [level["latency_ms"][name] for level in levels]
        axes.plot(range(len(values)), values, marker="o", markersize=4, color=_PERCENTILES[name], label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_ylabel("latency (ms, logarithmic)")
    _legend(axes, "percentile", reverse=True)


def _throughput(axes: Axes, levels: Sequence[Mapping[str, Any]], rows: int) -> None:
    what = "rows/s" if rows > 1 else "requests/s"
    values = [level["rows_per_s" if rows > 1 else "requests_per_s"] for level in levels]
    places = range(len(levels))
    if levels[0]["rate_per_s"] is not None:
        asked = [level["rate_per_s"] * rows for level in levels]
        axes.plot(places, asked, linestyle="--", color=_ASKED, marker="_", label="asked for")
    axes.plot(places, values, marker="o", markersize=4, color=_INK, label="answered")
    axes.set_ylim(0, None)
    axes.set_ylabel(f"throughput ({what})")
    if levels[0]["rate_per_s"] is not None:
        _legend(axes, "")


def _parts(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    """Bars of the mean request: what is not the server's queue or compute is HTTP, the network and the client."""
    values = {
        "queue": [level["server"]["queue_ms"] for level in levels],
        "compute": [sum(level["server"]["compute_ms"].values()) for level in levels],
        "other": [level["server"]["other_ms"] for level in levels],
    }
    below = [0.0] * len(levels)
    for name, parts in values.items():
        axes.bar(range(len(levels)), parts, _BAR, below, color=_PARTS[name], label=name)
        below = [lower + part for lower, part in zip(below, parts, strict=True)]
    axes.set_ylabel("mean request (ms)")
    _legend(axes, "time in", reverse=True)


def _batches(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    import matplotlib

    all_rows = {int(rows): 0 for level in levels for rows in level["server"]["batch_rows"]}
    names = list(grouped(all_rows))
    colours = matplotlib.colormaps["viridis_r"].resampled(max(2, len(names)))
    below = [0.0] * len(levels)
    for number, name in enumerate(names):
        shares = [_share(level["server"]["batch_rows"], all_rows, name) for level in levels]
        axes.bar(range(len(levels)), shares, _BAR, below, color=colours(number), label=name)
        below = [lower + share for lower, share in zip(below, shares, strict=True)]
    axes.set_ylim(0, 100)
    axes.set_ylabel("batches (%)")
    _legend(axes, "rows a batch", reverse=True)


def _share(batch_rows: Mapping[str, int], all_rows: Mapping[int, int], name: str) -> float:
    """Percent of a level's batches; groups are those of all levels."""
    counts = grouped({**all_rows, **{int(rows): count for rows, count in batch_rows.items()}})
    return 100 * counts[name] / max(1, sum(counts.values()))


def _legend(axes: Axes, title: str, *, reverse: bool = False) -> None:
    """Beside the panel, so that it covers nothing; reversed where what is drawn last is on top."""
    axes.legend(
        title=title, frameon=False, reverse=reverse, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2,
        alignment="left", handlelength=1.2, fontsize=8, title_fontsize=8,
    )  # fmt: skip
