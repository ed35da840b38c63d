"""How cost grows with connections that are open: 1 to 1,000, of which at most 16 ask; and what an idle one keeps."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import bare_uvicorn, bitserve, triton
from benchmarks.peers.idle import Closed, idle_connections, room_for
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Measured, Rounds, Void, interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import Questions, questions_for
from benchmarks.peers.setup import Effort, Standing, loaded, up
from benchmarks.peers.wording import BINARY
from benchmarks.peers.words import against, row

__all__ = ["measure", "rows", "series"]

ACTIVE = 16
OPEN = (1, 16, 100, 1000)
IDLE = 1000


def measure(effort: Effort, counts: tuple[int, ...] = OPEN) -> dict[str, Any]:
    """The idle ones are opened anew for each run: a server may close them after a while."""
    room_for(max(counts))
    served = tiny()
    questions = questions_for(served)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with up((bitserve, triton, bare_uvicorn), [served], folder) as standing:
            idle_mb = {name: _idle_mb(peer, questions, folder) for name, peer in standing.peers.items()}
            cases = [{"open": count, **_case(standing, questions, folder, count, effort)} for count in counts]
    return {"idle": IDLE, "idle_mb": idle_mb, "cases": cases}


def _idle_mb(peer: Peer, questions: Questions, folder: Path) -> float | None:
    """What they take, in MB, of a server that has seen load, but not so many connections: it would have room for them.

    None where the server does not keep them.
    """
    try:
        loaded(peer, BINARY, questions, folder, ACTIVE, 2)
        before_mb = peer.tree.memory_mb()
        with idle_connections(peer.base, IDLE, peer.sent(BINARY, questions)[0]):
            return peer.tree.memory_mb() - before_mb
    except (Closed, OSError, Void) as error:
        print(f"{peer.name} does not keep {IDLE} idle connections: {error}", flush=True)
        return None


def _case(standing: Standing, questions: Questions, folder: Path, count: int, effort: Effort) -> dict[str, Any]:
    turns = {
        name: functools.partial(_beside_idle, peer, questions, folder, count, effort.seconds)
        for name, peer in standing.peers.items()
    }
    for peer in standing.peers.values():
        with contextlib.suppress(Void):  # it will be void again, and be named then
            _beside_idle(peer, questions, folder, count, 1)
    return interleaved(turns, effort.rounds, standing.absent).as_dict()


def _beside_idle(peer: Peer, questions: Questions, folder: Path, count: int, seconds: int) -> Measured:
    """One run of wrk beside the others that are open; Void if one of those is closed."""
    active = min(ACTIVE, count)
    try:
        with idle_connections(peer.base, count - active, peer.sent(BINARY, questions)[0]):
            return loaded(peer, BINARY, questions, folder, active, seconds)
    except (Closed, OSError) as error:
        raise Void(str(error)) from error


def rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """Rates, and the memory of idle ones."""
    table = []
    for one in found["cases"]:
        what = f"tiny MLP [1,64], binary, {one['open']} connections open, {min(ACTIVE, one['open'])} of them of wrk"
        said = against(Rounds.from_dict(one), "requests_per_s", bitserve.NAME, triton.NAME, "requests/s")
        table.append(row(f"{what}: requests/s against Triton's", said))
    took = {name: "not kept" if took_mb is None else f"{took_mb:.1f} MB" for name, took_mb in found["idle_mb"].items()}
    said = ", ".join(f"{name} {words}" for name, words in took.items())
    return [*table, row(f"memory of {found['idle']} idle connections", said, "< 20 MB")]


def series(found: dict[str, Any]) -> list[tuple[float, Rounds]]:
    """Open connections and rounds."""
    return [(one["open"], Rounds.from_dict(one)) for one in found["cases"]]
