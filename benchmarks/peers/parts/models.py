"""How cost grows with the number of models that are loaded: 1 to 100 copies of the tiny MLP, asked in turn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bitserve, triton
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Rounds
from benchmarks.peers.questions import questions_over
from benchmarks.peers.setup import Effort, case, up
from benchmarks.peers.wording import BINARY
from benchmarks.peers.words import against, row

__all__ = ["measure", "rows", "series"]

CONNECTIONS = 16
COUNTS = (1, 10, 100)
_RATE = "requests_per_s"


def measure(effort: Effort, counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Each number with servers of its own; `memory_mb`: of each server under load, all its processes together."""
    return {"cases": [_of(count, effort) for count in counts]}


def _of(count: int, effort: Effort) -> dict[str, Any]:
    models = [tiny(f"tiny_{seed}", seed) for seed in range(count)]
    questions = questions_over(models)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, triton), models, folder) as standing:
            found = case(standing, BINARY, questions, folder, CONNECTIONS, effort)
            memory_mb = {name: peer.tree.memory_mb() for name, peer in standing.peers.items()}
    return {"models": count, "memory_mb": memory_mb, **found}


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Rates and memory."""
    table = []
    for one in found["cases"]:
        what = f"tiny MLPs loaded: {one['models']}, asked in turn, binary, {CONNECTIONS} connections of wrk"
        said = against(Rounds.from_dict(one), _RATE, bitserve.NAME, triton.NAME, "requests/s")
        memory = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in one["memory_mb"].items())
        table += [row(f"{what}: requests/s against Triton's", said), row("the same: memory", memory or "not measured")]
    return table


def series(found: dict[str, Any]) -> list[tuple[float, Rounds]]:
    """Models and rounds."""
    return [(one["models"], Rounds.from_dict(one)) for one in found["cases"]]
