"""The tiny MLP: requests a second and latency by connections, beside Triton, a bare uvicorn and the engine alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import child_of
from benchmarks.peers import bare_uvicorn, bitserve, triton
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Rounds
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import IN_PROCESS, Effort, case, up
from benchmarks.peers.wording import BINARY, JSON
from benchmarks.peers.words import against, row, why_void

__all__ = ["CONNECTIONS", "measure", "rows"]

CONNECTIONS = (1, 16, 64, 256)
_RATE, _P99, _P50 = "requests_per_s", "p99_ms", "p50_ms"
_BARE_GOALS = {1: ">= 0.65x", 16: ">= 1.00x", 64: ">= 1.00x"}


def measure(effort: Effort, connections: tuple[int, ...] = CONNECTIONS) -> dict[str, Any]:
    """Every kind of body at every number of connections."""
    served = tiny()
    questions = questions_for(served)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "tiny.onnx"
        model.write_bytes(served.model.SerializeToString())
        with up((bitserve, triton, bare_uvicorn), [served], folder) as standing, child_of(model) as child:
            cases = [
                case(standing, kind, questions, folder, count, effort, child)
                for kind in (BINARY, JSON)
                for count in connections
            ]
    return {"cases": cases}


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Against Triton: rate and p99. Against the bare uvicorn: rate. Against the engine alone: p50 of one caller."""
    table = []
    for one in found["cases"]:
        table += _rows_of(Rounds.from_dict(one), one["kind"], one["connections"])
    return table


def _rows_of(found: Rounds, kind: str, connections: int) -> list[dict[str, str]]:
    one = connections == 1
    what = f"tiny MLP [1,64], {kind}, {connections} connection{'' if one else 's'} of wrk"
    table = [
        row(
            f"{what}: requests/s against Triton's",
            against(found, _RATE, bitserve.NAME, triton.NAME, "requests/s"),
            ">= 1.00x" if one else ">= 1.50x",
        ),
        row(
            "the same: p99",
            against(found, _P99, bitserve.NAME, triton.NAME, "ms", 2),
            "<= 1.10x" if one else "<= 1.00x",
        ),
        row(
            "the same: requests/s against a bare uvicorn's, which answers a constant",
            against(found, _RATE, bitserve.NAME, bare_uvicorn.NAME, "requests/s"),
            _BARE_GOALS.get(connections, "-"),
        ),
    ]
    if one:
        table.append(row("the same: p50 above the engine in-process", _above(found), "<= 250 us"))
    return table


def _above(found: Rounds) -> str:
    more = found.difference(_P50, bitserve.NAME, IN_PROCESS)
    mine, alone = found.median(bitserve.NAME, _P50), found.median(IN_PROCESS, _P50)
    if more is None or mine is None or alone is None:
        return why_void(found, bitserve.NAME, IN_PROCESS)
    return f"{1000 * more:.0f} us ({1000 * mine:.0f} against {1000 * alone:.0f} us)"
