"""The tiny MLP beside servers written in Python: MLServer, LitServe and BentoML. JSON is what all of them speak."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bentoml, bitserve, litserve, mlserver
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Rounds
from benchmarks.peers.questions import questions_for
from benchmarks.peers.setup import Effort, case, up
from benchmarks.peers.wording import JSON
from benchmarks.peers.words import against, row

__all__ = ["measure", "rows"]

CONNECTIONS = (1, 16, 64, 256)
_OTHERS = (mlserver, litserve, bentoml)


def measure(effort: Effort) -> dict[str, Any]:
    """At every number of connections."""
    served = tiny()
    questions = questions_for(served)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, *_OTHERS), [served], folder) as standing:
            return {"cases": [case(standing, JSON, questions, folder, count, effort) for count in CONNECTIONS]}


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Requests a second against each."""
    return [
        row(
            f"tiny MLP [1,64], JSON, connections of wrk: {one['connections']}; requests/s against {other.NAME}'s",
            against(Rounds.from_dict(one), "requests_per_s", bitserve.NAME, other.NAME, "requests/s"),
        )
        for one in found["cases"]
        for other in _OTHERS
    ]
