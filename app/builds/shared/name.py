"""Who carries out builds: a name for a process, and for the one that was here before it."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

from app.builds.lock import BuildsLock

__all__ = ["Name", "job_name", "new_name"]

_FILE = ".name"


def new_name() -> str:
    """Of this process, and of no other of any time; it says where to look."""
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


def job_name(build: str) -> str:
    """Of the Job that carries out a build: the same for the same one, so that two servers that make it make one."""
    return f"bitserve-build-{build}"


class Name:
    """`own`, and `before`: of the process that had this folder, which has ended if it does not hold its lock; empty
    where there was none.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = BuildsLock(folder)
        self._file = folder / _FILE
        self.own, self.before = new_name(), ""

    def take(self) -> bool:
        """Touches the disk. False where another process lives that has this folder; nothing is known of one before."""
        if not self._lock.take():
            return False
        with contextlib.suppress(OSError):
            self.before = self._file.read_text(errors="replace").strip()
        with contextlib.suppress(OSError):
            self._file.write_text(self.own)
        return True

    def release(self) -> None:
        self._lock.release()
