"""Requests a second by connections, and how they fall with bodies, models, idle connections and rows: one SVG."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.pairing import Rounds

__all__ = ["lines", "write_plot"]

_RATE = "requests_per_s"
_COLOURS = {
    "bitserve": "#1b7f5c", "Triton": "#2f6fb3", "bare uvicorn": "#999999", "MLServer": "#b3702f", "LitServe": "#8a4fb3",
    "BentoML": "#c02020",
}  # fmt: skip
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "bitserve", "font.size": 9}
_GROWTH = {
    "sizes": "bytes of a body (4 connections)",
    "models": "models loaded (16 connections)",
    "connections": "connections open (at most 16 ask)",
    "batches": "rows of a request (16 connections)",
}
Series = Sequence[tuple[float, Rounds]]


def write_plot(path: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """`parts`: figures by part, as they are stored. A part that was not measured has no panel."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = _panels(parts)
    if not panels:
        return
    with matplotlib.rc_context(_SETTINGS):
        height = (len(panels) + 1) // 2
        drawing = Figure(figsize=(8, 0.6 + 2.5 * height), layout="constrained")
        FigureCanvasSVG(drawing)
        places = list(drawing.subplots(height, 2, squeeze=False).flat)
        for axes in places[len(panels) :]:
            axes.remove()
        for axes, (title, series) in zip(places, panels.items(), strict=False):
            for name, (xs, ys) in lines(series).items():
                axes.plot(xs, ys, marker="o", markersize=3, linewidth=1.2, color=_COLOURS.get(name), label=name)
            axes.set(xscale="log", yscale="log", xlabel=title)
            axes.grid(color="#dddddd", linewidth=0.6)
        for axes in places[: len(panels) : 2]:
            axes.set_ylabel("requests/s")
        named = {}
        for axes in places[: len(panels)]:
            handles, labels = axes.get_legend_handles_labels()
            named.update(zip(labels, handles, strict=True))
        drawing.legend(named.values(), named.keys(), frameon=False, loc="outside lower center", ncols=6)
        drawing.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def lines(series: Series) -> dict[str, tuple[list[float], list[float]]]:
    """By server: where it was measured, and the median there; void runs are no points."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for x, rounds in series:
        for name in _COLOURS:
            rate = rounds.median(name, _RATE)
            if rate is not None:
                xs, ys = found.setdefault(name, ([], []))
                xs.append(x)
                ys.append(rate)
    return found


def _panels(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for kind in ("binary", "JSON"):
        cases = [case for part in ("tiny", "others") if part in parts for case in parts[part]["cases"]]
        by_count: dict[int, Rounds] = {}
        for case in cases:
            if case["kind"] == kind:
                _merge(by_count.setdefault(case["connections"], Rounds()), Rounds.from_dict(case))
        if by_count:
            found[f"connections, tiny MLP [1,64], {kind}"] = sorted(by_count.items())
    for part, title in _GROWTH.items():
        if part in parts:
            found[title] = importlib.import_module(f"benchmarks.peers.parts.{part}").series(parts[part])
    return found


def _merge(rounds: Rounds, more: Rounds) -> None:
    """Servers that were measured in another part; who was in the first keeps what it had there."""
    known = {name for found in rounds.rounds for name in found} | set(rounds.void)
    rounds.rounds += [{name: one for name, one in found.items() if name not in known} for found in more.rounds]
    rounds.void |= {name: why for name, why in more.void.items() if name not in known}
