"""Run one build as a child process: its own group, bounded in time and memory, no secrets, niced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import psutil

import engines
from engines.errors import ModelRefused

__all__ = ["BuildLimits", "run_build"]

log = logging.getLogger(__name__)
_WATCH_S = 0.1
_KEPT_STDERR_BYTES = 4096
_NICENESS = 10


class BuildLimits:
    """Wall time and resident memory (of the whole group) of one build."""

    def __init__(self, timeout_s: float, memory_bytes: int) -> None:
        self.timeout_s, self.memory_bytes = timeout_s, memory_bytes


async def run_build(source: Path, cache: Path, limits: BuildLimits) -> None:
    """Compile `source` into `cache`. Raises ModelRefused with the reason, however the child ended."""
    with tempfile.TemporaryDirectory(prefix="bitserve-build-", ignore_cleanup_errors=True) as empty:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engines", "build", str(source.absolute()), "--cache", str(cache.absolute()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=empty,
            env=_environment(empty),
            start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(psutil.Error):
            psutil.Process(child.pid).nice(_NICENESS)
        try:
            said, complaint, stopped = await asyncio.gather(_read_said(child), _read_tail(child), _watch(child, limits))
        except BaseException:
            _kill_group(child.pid)
            await child.wait()
            raise
    _judge(child.returncode or 0, said, complaint, stopped)


def _environment(home: str) -> dict[str, str]:
    """Only what a compiler needs; tokens and keys of the server stay with the server."""
    kept = {
        key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR") if key in os.environ
    }
    package_root = str(Path(engines.__file__).parent.parent)
    return {**kept, "HOME": home, "PYTHONPATH": package_root, "NNCF_CI": "1", "PYTHONUNBUFFERED": "1"}


async def _read_said(child: asyncio.subprocess.Process) -> dict[str, str]:
    """The child's JSON lines, merged: the last stage, the error if it gave one."""
    assert child.stdout is not None
    said: dict[str, str] = {}
    async for line in child.stdout:
        with contextlib.suppress(ValueError, TypeError):
            said.update(json.loads(line))
    return said


async def _read_tail(child: asyncio.subprocess.Process) -> str:
    assert child.stderr is not None
    tail = b""
    while chunk := await child.stderr.read(65536):
        tail = (tail + chunk)[-_KEPT_STDERR_BYTES:]
    return tail.decode("utf-8", "replace")


async def _watch(child: asyncio.subprocess.Process, limits: BuildLimits) -> str:
    """Wait for the end; end it for time or memory. Returns why it was ended, or nothing."""
    deadline_s = asyncio.get_running_loop().time() + limits.timeout_s
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(child.wait()), _WATCH_S)
            return ""
        if asyncio.get_running_loop().time() > deadline_s:
            _kill_group(child.pid)
            return f"it did not end within {limits.timeout_s:g} s"
        used = _group_memory_bytes(child.pid)
        if used > limits.memory_bytes:
            _kill_group(child.pid)
            return f"it used {used >> 20} MiB of memory, {limits.memory_bytes >> 20} MiB are allowed"


def _group_memory_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _judge(code: int, said: dict[str, str], complaint: str, stopped: str) -> None:
    stage = said.get("stage", "start")
    if stopped:
        raise ModelRefused(f"the compile was ended at stage '{stage}': {stopped}")
    if code == 0 and "key" in said:
        return
    if "error" in said:
        raise ModelRefused(said["error"])
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "it said nothing")
    log.warning("a compile crashed", extra={"stage": stage, "stderr": complaint[-1000:]})
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    raise ModelRefused(f"the compile ended {how} at stage '{stage}': {last[:300]}")
