"""`python -m engines.sandbox [limits] -- COMMAND...`: run a command that is not trusted.

Where the kernel allows it: no network, no sight of other processes, no shared memory that stays, no files but those
named, no sockets of the file system. What it does not allow is said (one JSON line {"log": ...}) and left out; limits
on time, memory and disk hold anyway, since the caller watches them, and nothing that the command started outlives it.
Ends as the command ended: with its code, or by its signal.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import sysconfig
import time
from pathlib import Path

from engines.sandbox import landlock, seccomp

_NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_DEATH_SIGNAL, _TAKE_ORPHANS = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
_ROUNDS, _ROUND_S = 200, 0.01
"""Of ending what is there, until nothing is left: a process that forks may be ahead for a while."""
_SIGNALLED = 128
_NICENESS = 19
_GROUP_NICENESS = 10
"""A tenth of the CPU time beside a server that wants all of it: a build must come to its end within its time."""
_AUTOGROUP = Path("/proc/self/autogroup")
_FIRST_TO_DIE = "1000"  # oom_score_adj: where memory runs out, the kernel ends the compile and not the server
_READABLE = (
    "/usr", "/lib", "/lib64", "/bin", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/etc/fonts",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys",
    "/proc/filesystems", "/proc/version", "/sys/devices/system", "/sys/fs/cgroup",
)  # fmt: skip
"""What an interpreter and a compiler read. Not /proc/PID: command lines of others, a token among them, stand there."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.sandbox", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the caller: end when it ends")
    parser.add_argument("--cpu-s", type=int, default=0, help="seconds of CPU time of each process; 0 = no limit")
    parser.add_argument("--file-bytes", type=int, default=0, help="largest file that may be written; 0 = no limit")
    parser.add_argument("--read", type=Path, action="append", default=[], help="a file or folder that may be read")
    parser.add_argument("--write", type=Path, action="append", default=[], help="a folder that may be written")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    _set_limits(options.cpu_s, options.file_bytes)
    _die_with(options.parent)
    if _isolate():
        _restrict(options.read, options.write)
        return _supervise(options.command)
    return _hold_together(options.command, options.read, options.write)


def _step_back() -> None:
    """Take only the CPU time that nobody else wants.

    A session of its own may be a scheduling group of its own (sched(7), "The autogroup feature"): niceness then counts
    among its own processes only, and the group as a whole needs one too. Never that of a session we were called in.
    """
    os.nice(_NICENESS)
    if os.getsid(0) == os.getpid() and _AUTOGROUP.exists():
        try:
            _AUTOGROUP.write_text(str(_GROUP_NICENESS))
        except OSError as error:
            _say(f"no low priority for the group of processes: {error.strerror}")


def _set_limits(cpu_s: int, file_bytes: int) -> None:
    _step_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def _die_with(parent: int) -> None:
    """A server that is killed leaves no compile behind (PR_SET_PDEATHSIG; where there is none, it just ends late)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def _isolate() -> bool:
    """A network without any interface, process numbers of our own (ending the first ends all of them), and shared
    memory and queues of our own, which are gone with the last of these.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    own = _NEW_NET | _NEW_PID | _NEW_IPC
    for flags in (own, _NEW_USER | own):  # root needs no namespace of users
        if libc.unshare(flags) == 0:
            return True
    _say(f"no isolation from network and processes: {os.strerror(ctypes.get_errno())}")
    return False


def _restrict(read: list[Path], write: list[Path]) -> None:
    _restrict_files(read, write)
    try:
        seccomp.refuse_ways_out()
    except OSError as error:
        _say(f"no restriction of sockets in the file system: {error.strerror}")


def _restrict_files(read: list[Path], write: list[Path]) -> None:
    own = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).parent, Path(__file__).resolve().parent.parent}
    own.update(Path(place) for name in ("purelib", "platlib", "stdlib") if (place := sysconfig.get_path(name)))
    if not landlock.version():
        _say("no restriction of files: the kernel has no Landlock")
        return
    try:
        landlock.restrict([*map(Path, _READABLE), *own, *read], [*write, Path("/dev/null")])
    except OSError as error:
        _say(f"no restriction of files: {error.strerror}")


def _supervise(command: list[str]) -> int:
    """Start the first process of the new namespace, and end as it ends."""
    first = os.fork()
    if first == 0:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        os._exit(_reap(_start(command)))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
    return _as_code(os.waitpid(first, 0)[1])


def _hold_together(command: list[str], read: list[Path], write: list[Path]) -> int:
    """The same without process numbers of our own: take in what loses its parent, and end it with the command.

    This process is not restricted, since it has to see the others, and to be out of their reach.
    """

    def end(*_: object) -> None:
        _end_all_below()
        os._exit(_SIGNALLED + signal.SIGTERM)

    libc = ctypes.CDLL(None)
    libc.prctl(_TAKE_ORPHANS, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, end)
    libc.prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)  # where the caller dies, there is something to do first
    child = os.fork()
    if child == 0:
        libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        _restrict(read, write)
        os._exit(_execute(command))
    code = _reap(child)
    _end_all_below()
    return code


def _end_all_below() -> None:
    for _ in range(_ROUNDS):
        for pid in _below(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_ROUND_S)


def _below(root: int) -> list[int]:
    """Processes that this one has started, and those that they have, as /proc has them."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


def _start(command: list[str]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(_execute(command))
    return child


def _reap(child: int) -> int:
    """The first process must collect every orphan. Returns when the command itself has ended; all else ends with it."""
    while True:
        ended, status = os.wait()
        if ended == child:
            return _as_code(status)


def _as_code(status: int) -> int:
    """128 + signal stands for a signal, since the first process of a namespace cannot die of its own."""
    return _SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _execute(command: list[str]) -> int:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
    return 127


def _say(text: str) -> None:
    print(json.dumps({"log": text}), flush=True)


def _end_as(code: int) -> None:
    if code > _SIGNALLED:
        number = code - _SIGNALLED
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    sys.exit(code)


if __name__ == "__main__":
    _end_as(main())
