"""A peer's process with all its children: started on loopback, waited for, measured, ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

__all__ = ["Tree", "answers", "started", "wait"]

READY_S = 300.0
_END_S = 20.0


class Tree:
    """A process and its descendants, as they are whenever it is asked."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def members(self) -> list[psutil.Process]:
        """The root is the first."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_s(self) -> float:
        """User and system seconds so far, of those that have ended and were waited for too."""
        total = 0.0
        for one in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_mb(self) -> float:
        """Proportional share of memory (pages that they share count once), in MB of 10^6 bytes."""
        total = 0
        for one in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
        return total / 1e6


@contextlib.contextmanager
def started(
    command: Sequence[str], folder: Path, ready: Callable[[], bool], env: Mapping[str, str] | None = None
) -> Iterator[Tree]:
    """Run it until the end, in a session of its own; RuntimeError with its last words if it is not ready in time."""
    log = folder / "log.txt"
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT, cwd=folder,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        wait(ready, process, log)
        yield Tree(process.pid)
    finally:
        _end(process)


def wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it is ready; RuntimeError if it ends before, or takes too long."""
    until_s = time.monotonic() + READY_S
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > until_s:
            what = f"ended with {ended}" if ended is not None else f"was not ready within {READY_S:.0f} s"
            raise RuntimeError(f"{process.args[0]!r} {what}: {log.read_text(errors='replace')[-2000:]}")  # type: ignore[index]
        time.sleep(0.1)


def answers(url: str, method: str = "GET") -> bool:
    """Whether this is answered 200."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=5)
    try:
        connection.request(method, place.path or "/")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, then end what is left: the process and those that it started, which share its session."""
    left = Tree(process.pid).members() if process.poll() is None else []
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(left[1:], timeout=3)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)
