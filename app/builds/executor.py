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
from collections.abc import Sequence
from pathlib import Path

import psutil

from engines import repository
from engines.errors import ModelRefused

__all__ = ["COMPILER", "BuildLimits", "run_build"]

log = logging.getLogger(__name__)
_WATCH_S = 0.1
_KEPT_STDERR_BYTES = 4096
_KEPT_LINE_BYTES = 65536
_KEPT_ERROR_CHARS = 1000
_NICENESS = 10
_FIRST_TO_DIE = "1000"  # oom_score_adj: where memory runs out, the kernel ends the compile and not the server
_LAST_WORDS_S = 5.0
COMPILER = (sys.executable, "-m", "engines", "build")
"""What is run, with the source, `--cache DIR`, `--parent PID` and `--threads N` appended."""


class BuildLimits:
    """Wall time and resident memory (of the whole group) of one build; threads of the engine that it makes."""

    def __init__(self, timeout_s: float, memory_bytes: int, threads: int = 0) -> None:
        self.timeout_s, self.memory_bytes, self.threads = timeout_s, memory_bytes, threads


async def run_build(source: Path, cache: Path, limits: BuildLimits, command: Sequence[str] = COMPILER) -> None:
    """Compile `source` into `cache`. Raises ModelRefused with the reason, however the child ended.

    Nothing of the child's process group outlives this call.
    """
    with tempfile.TemporaryDirectory(prefix="bitserve-build-", ignore_cleanup_errors=True) as empty:
        child = await asyncio.create_subprocess_exec(
            *command, str(source.absolute()), "--cache", str(cache.absolute()), "--parent", str(os.getpid()),
            "--threads", str(limits.threads),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=empty,
            env=_environment(empty),
            start_new_session=True,
        )  # fmt: skip
        said: dict[str, str] = {}
        complaint = bytearray()
        readers = asyncio.gather(_read_said(child, said), _read_tail(child, complaint))
        try:
            _make_modest(child.pid)
            stopped = await _watch(child, limits)
        finally:
            _kill_group(child.pid)  # also what the child started: it may hold the pipes open
            await child.wait()
            await asyncio.wait({readers}, timeout=_LAST_WORDS_S)
            readers.cancel()
        hidden = (str(source.absolute().parent), str(cache.absolute()), empty)
    _judge(child.returncode or 0, said, complaint.decode("utf-8", "replace"), stopped, hidden)


def _make_modest(pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_FIRST_TO_DIE)


def _environment(home: str) -> dict[str, str]:
    """Only what a compiler needs; tokens and keys of the server stay with the server."""
    kept = {
        key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR") if key in os.environ
    }
    package_root = str(Path(repository.__file__).parent.parent)
    return {**kept, "HOME": home, "PYTHONPATH": package_root, "NNCF_CI": "1", "PYTHONUNBUFFERED": "1"}


async def _read_said(child: asyncio.subprocess.Process, said: dict[str, str]) -> None:
    """Merge the child's JSON lines into `said`: the last stage, the error if it gave one. All else is ignored."""
    assert child.stdout is not None
    line = b""
    while chunk := await child.stdout.read(_KEPT_LINE_BYTES):
        *whole, line = (line + chunk).split(b"\n")
        for text in whole:
            said.update(_fields(text))
        line = line[:_KEPT_LINE_BYTES]


def _fields(line: bytes) -> dict[str, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # libraries print there too
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value[:_KEPT_ERROR_CHARS] for key, value in found.items() if isinstance(value, str)}


async def _read_tail(child: asyncio.subprocess.Process, tail: bytearray) -> None:
    assert child.stderr is not None
    while chunk := await child.stderr.read(65536):
        tail += chunk
        del tail[:-_KEPT_STDERR_BYTES]


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


def _judge(code: int, said: dict[str, str], complaint: str, stopped: str, hidden: Sequence[str]) -> None:
    stage = said.get("stage", "start")
    if stopped:
        raise ModelRefused(f"the compile was ended at stage '{stage}': {stopped}")
    if code == 0 and "key" in said:
        return
    if "error" in said:
        raise ModelRefused(_without_paths(said["error"], hidden))
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "it said nothing")
    log.warning("a compile crashed", extra={"stage": stage, "stderr": complaint[-1000:]})
    how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
    raise ModelRefused(f"the compile ended {how} at stage '{stage}': {_without_paths(last, hidden)[:300]}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _without_paths(text: str, hidden: Sequence[str]) -> str:
    """The index is public: it names files, never where they lie on this machine."""
    for folder in (*hidden, str(Path(repository.__file__).parent.parent), sys.prefix):
        text = text.replace(folder + os.sep, "").replace(folder, "...")
    return text
