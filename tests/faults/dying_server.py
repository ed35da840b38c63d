"""A server that gets SIGKILL the moment a build enters a stage: python -m tests.faults.dying_server STAGE serve ..."""

from __future__ import annotations

import os
import signal
import sys

from app.builds.jobs import Builds
from app.cli import main
from tests.simulated.serve import run
from tests.support.servers import ON_GPU

_FIRST = os.getpid()
"""The server's first process: where it has front ends, builds run in a child of it."""


def die() -> None:
    """The whole server: its first process, and this one, which would else see its end a moment later."""
    os.kill(_FIRST, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(stage: str) -> None:
    """Once the stage is written to disk, as a process that is killed in it leaves it."""
    if stage == "queued":
        take = Builds.take

        def taken(self: Builds, build: str) -> None:
            take(self, build)
            die()

        Builds.take = taken  # type: ignore[method-assign]
        return
    tell = Builds._tell

    def told(self: Builds, build: str, begun: str, message: str, share: float) -> None:
        tell(self, build, begun, message, share)
        if begun == stage:
            die()

    Builds._tell = told  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(sys.argv.pop(1))
    run(main) if ON_GPU else main()
