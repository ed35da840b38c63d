"""All parts, or some: each is stored as it ends, beside those that were measured before."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import fingerprint
from benchmarks.peers import bentoml, litserve, mlserver, triton
from benchmarks.peers.setup import Effort

__all__ = ["PARTS", "measured", "result_of", "too_short"]

PARTS = ("tiny", "others", "resnet", "sizes", "models", "connections", "batches", "open_loop", "memory", "fronts")


def measured(parts: Sequence[str], effort: Effort, before: dict[str, Any], keep: Path | None = None) -> dict[str, Any]:
    """Figures by part; `before`: those of earlier, which a part replaces. `keep`: a file that has them after each."""
    found = dict(before)
    for part in parts:
        began_s = time.monotonic()
        figures = importlib.import_module(f"benchmarks.peers.parts.{part}").measure(effort)
        spent_s = round(time.monotonic() - began_s)
        found[part] = {"machine": fingerprint(), "effort": asdict(effort), **figures}
        print(f"{part}: measured in {spent_s} s", flush=True)
        if keep is not None:
            keep.write_text(json.dumps(result_of(found), indent=1) + "\n")
    return found


def too_short(found: dict[str, Any]) -> list[str]:
    """Parts that were measured for less than what README's figures are of."""
    usual = asdict(Effort())
    return [part for part, figures in found.items() if any(figures["effort"][key] < usual[key] for key in usual)]


def result_of(found: dict[str, Any]) -> dict[str, Any]:
    """README's rows in the order of the parts, and the figures that they are of."""
    rows = []
    for part in PARTS:
        if part in found:
            rows += importlib.import_module(f"benchmarks.peers.parts.{part}").rows(found[part])
    installed = {module.NAME: module.REQUIREMENTS for module in (triton, mlserver, litserve, bentoml)}
    return {"rows": rows, "peers": installed, "parts": found}
