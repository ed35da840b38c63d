"""The processes of one build: a child, what it started, and what that started, wherever these have gone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

__all__ = ["Family", "memory_bytes"]

_ROUNDS = 20
"""Of ending what is there and looking whether more has come."""
_BLOCK_BYTES = 512  # st_blocks, whatever the file system has
_IN_MEMORY = ("/memfd:", "/dev/zero (deleted)", "/SYSV")
"""Files without a disk, as /proc names them: pages of these are memory, also where no process has them mapped."""


class Family:
    """`pid` leads a process group, and takes in what loses its parent (the sandbox does): so all are below it while it
    lives. What was seen once is remembered for when it does not.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: set[psutil.Process] = set()
        self._first: psutil.Process | None = None
        with contextlib.suppress(psutil.Error):  # it may have ended
            self._first = psutil.Process(pid)

    def look(self) -> list[psutil.Process]:
        """Those that there are now."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            if self._first is not None:
                found = [self._first, *self._first.children(recursive=True)]
        self._seen.update(found)
        return found

    def end(self) -> None:
        """Kill all. The first goes last: while it lives, what is below it cannot get away."""
        for _ in range(_ROUNDS):
            if not _kill(process for process in self.look() if process.pid != self._pid):
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        _kill(process for process in list(self._seen) if process.pid != self._pid)


def _kill(processes: Iterable[psutil.Process]) -> int:
    """How many there were to kill; psutil makes sure that a number has not gone to another process."""
    killed = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
    return killed


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """What they have resident, and their files without a disk, which need not be mapped to be there.

    Pages of such a file that are mapped count twice; a compile has none.
    """
    used, files = 0, dict[tuple[int, int], int]()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used += process.memory_info().rss
        for key, size in _files_in_memory(Path(f"/proc/{process.pid}")).items():
            files[key] = max(size, files.get(key, 0))
    return used + sum(files.values())


def _files_in_memory(process: Path) -> dict[tuple[int, int], int]:
    """Bytes by (device, inode): of open ones what they hold, of others what is mapped, if only their maps are left."""
    found = _mapped(process)
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith(_IN_MEMORY):
                    status = os.stat(entry.path)
                    found[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return found


def _mapped(process: Path) -> dict[tuple[int, int], int]:
    found = dict[tuple[int, int], int]()
    text = ""
    with contextlib.suppress(OSError):
        text = (process / "maps").read_text(errors="replace")
    if not any(name in text for name in _IN_MEMORY):
        return found
    for line in text.splitlines():
        addresses, _, _, device, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith(_IN_MEMORY):
            (start, end), (major, minor) = (
                (int(one, 16) for one in pair.split(by)) for pair, by in ((addresses, "-"), (device, ":"))
            )
            key = os.makedev(major, minor), int(inode)
            found[key] = found.get(key, 0) + end - start
    return found
