"""The bounds of `benchmarks.roofline` as files: JSON with all counts, and a table for each GPU."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.report import RESULTS

__all__ = ["json_text", "markdown_text", "write_tables"]

_HEAD = """# Binary convolutions on GPUs: computed, not measured

No GPU was at hand. Each time is the least that one resource takes at its full rate for what the kernels ask of it, from
counted instructions and bytes; a real kernel takes longer. In us: **the bound with a launch**, then the work alone and
what bounds it: `products` the tensor cores, `shared` shared memory, `memory` the GPU's memory, as if nothing were in
its second cache. FP16 and INT8 convolutions stand at their best, without tiles. *Fused* says how many times as long a
kernel that writes floats and one that packs them take as the one that writes bits: with launches, and the work alone.

Command: `python -m benchmarks.roofline`. Assumed:
"""
_COLUMNS = ("layer", "rows", "tile", "FP32 out", "FP16 out", "bits out", "FP16", "INT8", "fused, FP32", "fused, FP16")


def json_text(result: dict[str, Any]) -> str:
    """One layer a line."""
    layers = ",\n  ".join(json.dumps(layer) for layer in result["layers"])
    rest = {key: value for key, value in result.items() if key != "layers"}
    return json.dumps(rest, indent=1)[:-2] + f',\n "layers": [\n  {layers}\n ]\n}}\n'


def markdown_text(result: dict[str, Any]) -> str:
    """A section for each GPU."""
    lines = [_HEAD, *(f"- {one}" for one in result["assumed"])]
    for gpu in result["gpus"]:
        lines += ["", f"## {gpu['name']}", ""]
        lines += [
            f"{gpu['processors']} multiprocessors at {gpu['clock_mhz']} MHz, {gpu['bandwidth_gb_s']} GB/s, "
            f"{gpu['b1']:g} multiply-accumulates of 1 bit a clock and multiprocessor ({gpu['b1_basis']}).",
            "", f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS),
        ]  # fmt: skip
        lines += [_row(layer) for layer in result["layers"] if layer["gpu"] == gpu["name"]]
    return "\n".join(lines) + "\n"


def _row(layer: dict[str, Any]) -> str:
    binary, dense, fused = layer["binary"], layer["dense"], layer["fused"]
    cells = [
        f"{layer['size']}x{layer['size']}x{layer['channels']}", str(layer["rows"]), layer["tile"],
        *(_cell(binary[out]) for out in ("FP32", "FP16", "BITS")),
        *(_cell(dense[kind]) for kind in ("FP16", "INT8")),
        *(f"{fused[out]['launched']:.1f}x, {fused[out]['work']:.1f}x" for out in ("FP32", "FP16")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cell(bounds: dict[str, Any]) -> str:
    return f"**{bounds['us']:.1f}** {bounds['work_us']:.2f} {bounds['work_by']}"


def write_tables(result: dict[str, Any]) -> None:
    """results/roofline.json and results/roofline.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "roofline.json").write_text(json_text(result))
    (RESULTS / "roofline.md").write_text(markdown_text(result))
