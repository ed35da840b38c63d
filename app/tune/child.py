"""`python -m app.tune.child PARENT serve ...`: the server's command, which ends when the process PARENT does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG."""


def main() -> None:
    """The command that started this one may be killed; its server must not live on."""
    parent = int(sys.argv.pop(1))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    from app.cli import main as command

    command()


if __name__ == "__main__":
    main()
