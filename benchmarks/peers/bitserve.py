"""This project's server, as anybody starts it: no configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import Tree
from benchmarks.peers.wording import BINARY, JSON, Binary, Json
from tests.support.onnx_models import place
from tests.support.servers import Server, running, until

__all__ = ["NAME", "up"]

NAME = "bitserve"
_BUILT_S = 1800.0


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path, name: str = NAME, *more: str) -> Iterator[Peer]:
    """Compiled first; the measured server starts from the cache. `more` are flags of that one."""
    repository = folder / "repository"
    for served in models:
        place(repository, served.name, served.model)
    flags = ("--max-batch-size", str(MAX_BATCH))
    for measured in (False, True):
        with running(repository, *flags, *(more if measured else ())) as server:
            _wait_built(server, len(models))
            if measured:
                yield Peer(name, server.url, Tree(server.process.pid), {BINARY: Binary(), JSON: Json()})


def _wait_built(server: Server, count: int) -> None:
    """Until so many models are ready: a hundred builds, one after the other, take minutes."""

    def states() -> list[str]:
        return [entry["state"] for entry in server.index().values()]

    def settled() -> bool:
        found = states()
        return len(found) == count and "LOADING" not in found

    until(settled, "models past loading", _BUILT_S, every_s=0.25)
    assert set(states()) == {"READY"}, server.index()
