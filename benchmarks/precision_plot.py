"""What each engine that was tried loses, over how long it takes: one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.report import Candidate

__all__ = ["write_plot"]

_COLOURS = {"fp32": "#555555", "fp16": "#1b7f5c", "int8": "#2f6fb3", "mixed": "#b3702f"}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "bitserve", "font.size": 9}


def write_plot(path: Path, what: str, candidates: Sequence[Candidate], chosen: str) -> None:
    """Candidates without a latency or a loss are left out, which the title counts."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = [one for one in candidates if one.latency_us is not None and one.loss is not None]
    with matplotlib.rc_context(_SETTINGS):
        drawing = Figure(figsize=(6.4, 3.2), layout="constrained")
        FigureCanvasSVG(drawing)
        axes = drawing.subplots()
        for precision in dict.fromkeys(one.precision for one in shown):
            points = [((one.latency_us or 0) / 1e3, one.loss or 0) for one in shown if one.precision == precision]
            colour = _COLOURS.get(precision, "#000000")
            axes.scatter(*zip(*points, strict=True), s=28, color=colour, label=precision, zorder=3)
        for one in shown:
            if one.name == chosen:
                place = ((one.latency_us or 0) / 1e3, one.loss or 0)
                axes.scatter(
                    *place, s=130, facecolors="none", edgecolors="#c02020", label=f"chosen: {chosen}", zorder=4
                )
        metric = shown[0].metric if shown else "the metric"
        left_out = len(candidates) - len(shown)
        axes.set_title(what + (f" ({left_out} not timed)" if left_out else ""), fontsize=9, loc="left")
        axes.set(xlabel="latency of one row, ms", ylabel=f"loss of {metric} against FP32", xlim=(0, None))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False)
        drawing.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
