"""ResNet-18 at 224, whose work is the engine's: what a server takes from it, and what Triton leaves of it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import Child, child_of, search
from benchmarks.peers import bitserve, triton
from benchmarks.peers.models import resnet
from benchmarks.peers.pairing import Measured, Rounds, interleaved
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import IN_PROCESS, Effort, runners, up
from benchmarks.peers.wording import BINARY
from benchmarks.peers.words import against, row, share

__all__ = ["measure", "rows"]

CONNECTIONS = 16
_RATE = "requests_per_s"


def measure(effort: Effort) -> dict[str, Any]:
    """One row a request, against the engine alone at its best batch, streams and threads."""
    served = resnet()
    questions = questions_for(served)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "resnet.onnx"
        model.write_bytes(served.model.SerializeToString())
        with child_of(model) as child:
            searched = search(child)
            best = max(searched, key=lambda found: found["rows_per_s"])
            shape = {key: int(best[key]) for key in ("streams", "threads", "batch")}
            with up((bitserve, triton), [served], folder) as standing:
                turns = runners(standing, BINARY, questions, folder, CONNECTIONS, effort)
                turns[IN_PROCESS] = functools.partial(_in_process, child, shape, effort.seconds)
                found = interleaved(turns, effort.rounds, standing.absent)
    return {"best": shape, "search": searched, **found.as_dict()}


def _in_process(child: Child, shape: dict[str, int], seconds: int) -> Measured:
    found = child.measure(**shape, seconds=seconds)
    return {**found, _RATE: found["rows_per_s"], "cpu_s_per_request": found["cpu_s_per_row"]}


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Rows a second."""
    rounds, best = Rounds.from_dict(found), found["best"]
    what = f"ResNet-18 (random weights) 224x224, binary, {CONNECTIONS} connections of wrk"
    at = f"batch {best['batch']}, {best['streams']} streams, {best['threads']} threads"
    return [
        row(
            f"{what}: rows/s against the engine in-process at its best ({at})",
            share(rounds, _RATE, bitserve.NAME, IN_PROCESS, "rows/s"),
            ">= 97 %",
        ),
        row("the same against Triton", against(rounds, _RATE, bitserve.NAME, triton.NAME, "rows/s", 1), "-"),
    ]
