"""What a child process may take of the machine, and its end where it takes more. Needs psutil; knows no build."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

__all__ = ["BuildLimits", "kill_group", "watch"]

_WATCH_S = 0.1


class BuildLimits:
    """Wall time, resident memory (of all its processes), disk and processes of one build; threads of its engine."""

    def __init__(
        self, timeout_s: float, memory_bytes: int, threads: int = 0, *, disk_bytes: int = 2**34, processes: int = 64
    ) -> None:
        self.timeout_s, self.memory_bytes, self.threads = timeout_s, memory_bytes, threads
        self.disk_bytes, self.processes = disk_bytes, processes


async def watch(child: asyncio.subprocess.Process, limits: BuildLimits, written: Sequence[Path]) -> str:
    """Wait for the end; end it for what it takes too much of. Returns why it was ended, or nothing."""
    deadline_s = asyncio.get_running_loop().time() + limits.timeout_s
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(child.wait()), _WATCH_S)
            return ""
        if asyncio.get_running_loop().time() > deadline_s:
            kill_group(child.pid)
            return f"it did not end within {limits.timeout_s:g} s"
        excess = _excess(child.pid, limits, written)
        if excess:
            kill_group(child.pid)
            return excess


def _excess(pid: int, limits: BuildLimits, written: Sequence[Path]) -> str:
    """What the processes take too much of, in words, or nothing."""
    used, count = 0, 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                used, count = used + process.memory_info().rss, count + 1
    if used > limits.memory_bytes:
        return f"it used {used >> 20} MiB of memory, {limits.memory_bytes >> 20} MiB are allowed"
    if count > limits.processes:
        return f"it ran {count} processes, {limits.processes} are allowed"
    disk = sum(_size_bytes(folder) for folder in written)
    if disk > limits.disk_bytes:
        return f"it wrote {disk >> 20} MiB to disk, {limits.disk_bytes >> 20} MiB are allowed"
    return ""


def _size_bytes(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
