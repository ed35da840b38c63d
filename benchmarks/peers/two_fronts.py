"""This project's server with two front ends beside the process that runs the engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers import bitserve
from benchmarks.peers.models import Served
from benchmarks.peers.peer import Peer

__all__ = ["NAME", "up"]

NAME = "bitserve with 2 front ends"


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """As `bitserve.up`."""
    with bitserve.up(models, folder, NAME, "--front-ends", "2") as peer:
        yield peer
