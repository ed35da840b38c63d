"""Whether memory grows over a million requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bitserve
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Void
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import Effort, loaded, up
from benchmarks.peers.wording import BINARY, JSON
from benchmarks.peers.words import row

__all__ = ["grown_mb", "measure", "rows"]

CONNECTIONS = 64
_STEP_S = 10
_WARM = 0.1
"""Of all requests: what memory is after these counts as where it begins."""


def measure(effort: Effort) -> dict[str, Any]:
    """Memory of the server after each run of wrk, both kinds of body in turn, until there were so many requests."""
    served = tiny()
    questions = questions_for(served)
    steps: list[dict[str, float]] = []
    void = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve,), [served], folder) as standing:
            void = standing.absent.get(bitserve.NAME, "")
            count = 0
            while count < effort.requests and not void:
                peer = standing.peers[bitserve.NAME]
                try:
                    run = loaded(peer, (BINARY, JSON)[len(steps) % 2], questions, folder, CONNECTIONS, _STEP_S)
                except Void as reason:
                    void = str(reason)
                else:
                    count += int(run["requests"])
                    steps.append({"requests": count, "memory_mb": peer.tree.memory_mb()})
    return {"steps": steps, "void": void}


def grown_mb(steps: list[dict[str, float]]) -> float:
    """From the first step that is past the warm ones to the last."""
    warm = steps[-1]["requests"] * _WARM
    first = next(step for step in steps if step["requests"] >= warm)
    return steps[-1]["memory_mb"] - first["memory_mb"]


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """One row."""
    steps = found["steps"]
    count = int(steps[-1]["requests"]) if steps else 0
    said = (
        f"void: {found['void']}" if found["void"] else f"{grown_mb(steps):+.1f} MB of {steps[-1]['memory_mb']:.0f} MB"
    )
    what = f"tiny MLP, {count} requests, binary and JSON, {CONNECTIONS} connections of wrk"
    return [row(f"{what}: growth of memory after the first tenth", said, "none")]
