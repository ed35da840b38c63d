"""How much faster than OpenVINO's FP32 each way to compute a binary layer is, by shape and instruction set: one SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_plot"]

_BASE = "OpenVINO FP32"
_SHOWN = {
    "bits": ("bitserve, bits in and out", "#0f4f3a"),
    "floats": ("bitserve, floats in and out", "#1b7f5c"),
    "OpenVINO BinaryConvolution": ("OpenVINO BinaryConvolution", "#b3702f"),
    "OpenVINO INT8": ("OpenVINO INT8", "#2f6fb3"),
    "ONNX Runtime FP32": ("ONNX Runtime FP32", "#999999"),
}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "bitserve", "font.size": 9}
_GROUP = 0.8


def write_plot(path: Path, measured: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """`measured`: by cap and height, as `benchmarks.binary` has it. `names`: what a cap stands for."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        drawing = Figure(figsize=(8, 3.4), layout="constrained")
        FigureCanvasSVG(drawing)
        panels = drawing.subplots(1, len(measured), sharey=True, squeeze=False)[0]
        for axes, (cap, by_height) in zip(panels, measured.items(), strict=True):
            for number, (runtime, (label, colour)) in enumerate(_SHOWN.items()):
                best = [found["best_us"] for found in by_height.values()]
                heights = [times[_BASE] / times[runtime] for times in best]
                width = _GROUP / len(_SHOWN)
                places = [at - _GROUP / 2 + (number + 0.5) * width for at in range(len(heights))]
                axes.bar(places, heights, width, label=label, color=colour, zorder=3)
            axes.axhline(1, color="#c02020", linewidth=0.8, zorder=4)
            axes.set_title(f"one thread, {names[cap]}", fontsize=9, loc="left")
            axes.set_xticks(range(len(by_height)), [f"{side} x {side}" for side in by_height])
            axes.set_xlabel("3x3 convolution of signs, height x width")
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        panels[0].set_ylabel(f"times as fast as {_BASE}")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3)
        drawing.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
