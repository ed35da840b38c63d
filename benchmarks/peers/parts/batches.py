"""How cost grows with the rows of a request: 1 to 32 rows of the tiny MLP."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bitserve, triton
from benchmarks.peers.models import MAX_BATCH, tiny
from benchmarks.peers.pairing import Rounds
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import Effort, case, up
from benchmarks.peers.wording import BINARY
from benchmarks.peers.words import against, row

__all__ = ["measure", "rows", "series"]

CONNECTIONS = 16
ROWS = (1, 2, 4, 8, 16, MAX_BATCH)


def measure(effort: Effort, sizes: tuple[int, ...] = ROWS) -> dict[str, Any]:
    """One pair of servers for all."""
    served = tiny()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, triton), [served], folder) as standing:
            cases = [
                {"rows": size, **case(standing, BINARY, questions_for(served, size), folder, CONNECTIONS, effort)}
                for size in sizes
            ]
    return {"cases": cases}


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Requests a second."""
    return [
        row(
            f"tiny MLP [{one['rows']},64], binary, {CONNECTIONS} connections of wrk: requests/s against Triton's",
            against(Rounds.from_dict(one), "requests_per_s", bitserve.NAME, triton.NAME, "requests/s"),
        )
        for one in found["cases"]
    ]


def series(found: dict[str, Any]) -> list[tuple[float, Rounds]]:
    """Rows of a request and rounds."""
    return [(one["rows"], Rounds.from_dict(one)) for one in found["cases"]]
