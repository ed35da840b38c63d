"""How cost grows with a body: 256 B to 16 MB into a model that does next to nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bare_uvicorn, bitserve, triton
from benchmarks.peers.models import largest
from benchmarks.peers.pairing import Rounds
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import Effort, case, up
from benchmarks.peers.wording import BINARY, JSON
from benchmarks.peers.words import against, row, why_void

__all__ = ["measure", "rows", "series"]

CONNECTIONS = 4
PICTURE = 3 * 224 * 224
"""Numbers of one picture, 602,112 bytes."""
WIDTHS = (64, 1024, 16384, PICTURE, 262144, 4194304)
_LARGEST_JSON = 262144
"""Numbers: some 5 MB as JSON."""
_RATE, _CPU = "requests_per_s", "cpu_s_per_request"


def measure(effort: Effort, widths: tuple[int, ...] = WIDTHS) -> dict[str, Any]:
    """Each width with servers of its own: what a large model leaves behind is not a small one's."""
    return {"cases": [found for width in widths for found in _of(width, effort)]}


def _of(width: int, effort: Effort) -> list[dict[str, Any]]:
    served = largest(width)
    questions = questions_for(served)
    kinds = (BINARY, JSON) if width <= _LARGEST_JSON else (BINARY,)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, triton, bare_uvicorn), [served], folder) as standing:
            return [
                {"bytes": 4 * width, **case(standing, kind, questions, folder, CONNECTIONS, effort)} for kind in kinds
            ]


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Rates, and CPU for a picture."""
    table = []
    for one in found["cases"]:
        rounds = Rounds.from_dict(one)
        what = f"largest of {one['bytes']} bytes, {one['kind']}, {CONNECTIONS} connections of wrk"
        said = against(rounds, _RATE, bitserve.NAME, triton.NAME, "requests/s")
        table.append(row(f"{what}: requests/s against Triton's", said))
        if one["bytes"] == 4 * PICTURE and one["kind"] == BINARY:
            table.append(row("the same: CPU of server and engine for a request", _cpu(rounds), "<= 0.3 ms"))
    return table


def _cpu(rounds: Rounds) -> str:
    mine, theirs = rounds.median(bitserve.NAME, _CPU), rounds.median(triton.NAME, _CPU)
    if mine is None or theirs is None:
        return why_void(rounds, bitserve.NAME, triton.NAME)
    return f"{1000 * mine:.2f} ms (Triton {1000 * theirs:.2f} ms)"


def series(found: dict[str, Any]) -> list[tuple[float, Rounds]]:
    """Bytes and rounds of binary bodies."""
    return [(one["bytes"], Rounds.from_dict(one)) for one in found["cases"] if one["kind"] == BINARY]
