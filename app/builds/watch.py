"""What a child process may take of the machine, and its end where it takes more. Needs psutil; knows no build."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from app.builds.family import Family, memory_bytes
from engines.runtime import usable_threads

__all__ = ["BuildLimits", "watch"]

_WATCH_S = 0.1


class BuildLimits:
    """Wall time, CPU time, memory, disk and processes of one build, all its processes together; the largest file that
    it may write; threads of its engine. `cpu_s` 0: as much as all usable threads have within the wall time.
    """

    def __init__(
        self, timeout_s: float, memory_bytes: int, threads: int = 0, *, cpu_s: float = 0, disk_bytes: int = 2**34,
        file_bytes: int = 2**33, processes: int = 64,
    ) -> None:  # fmt: skip
        self.timeout_s, self.memory_bytes, self.threads = timeout_s, memory_bytes, threads
        self.cpu_s = cpu_s or timeout_s * max(threads, usable_threads())
        self.disk_bytes, self.file_bytes, self.processes = disk_bytes, file_bytes, processes


async def watch(child: asyncio.subprocess.Process, family: Family, limits: BuildLimits, written: Sequence[Path]) -> str:
    """Wait for the end; end it for what it takes too much of. Returns why it was ended, or nothing.

    It is looked at in a thread of its own: what a child can make many of takes long to count.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + limits.timeout_s
    looking = ThreadPoolExecutor(1, thread_name_prefix="watch")
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(child.wait()), _WATCH_S)
                return _named_ending(child.returncode or 0, limits)
            if loop.time() > deadline_s:
                family.end()
                return f"it did not end within {limits.timeout_s:g} s"
            excess = await loop.run_in_executor(looking, _excess, family, limits, written)
            if excess:
                family.end()
                return excess
    finally:
        looking.shutdown(wait=False)


def _named_ending(code: int, limits: BuildLimits) -> str:
    """Why the kernel ended it, where that was for a limit."""
    if code == -signal.SIGXCPU:
        return f"it used up its CPU time, {limits.cpu_s:g} s are allowed"
    if code == -signal.SIGXFSZ:
        return f"it wrote too large a file, {limits.file_bytes >> 20} MiB are allowed"
    return ""


def _excess(family: Family, limits: BuildLimits, written: Sequence[Path]) -> str:
    """What the processes take too much of, in words, or nothing."""
    processes = family.look()
    used = memory_bytes(processes)
    if used > limits.memory_bytes:
        return f"it used {used >> 20} MiB of memory, {limits.memory_bytes >> 20} MiB are allowed"
    if len(processes) > limits.processes:
        return f"it ran {len(processes)} processes, {limits.processes} are allowed"
    cpu_s = sum(map(_cpu_s, processes))
    if cpu_s > limits.cpu_s:
        return f"it used {cpu_s:.1f} s of CPU time, {limits.cpu_s:g} s are allowed"
    disk = sum(_size_bytes(folder) for folder in written)
    if disk > limits.disk_bytes:
        return f"it wrote {disk >> 20} MiB to disk, {limits.disk_bytes >> 20} MiB are allowed"
    return ""


def _cpu_s(process: psutil.Process) -> float:
    """Of a process and those of its children that it has seen the end of."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _size_bytes(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
