"""Compiles that attack the machine: each is stopped, named where it is ended for it, and touches nothing else.

Needs a kernel with namespaces and Landlock; where either is missing a build says so in its log, and a part of this
cannot hold.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.builds import executor
from app.builds.executor import BuildLimits, run_build
from engines.errors import ModelRefused
from engines.request import BuildRequest
from engines.sandbox import landlock
from tests.support.servers import ROOT, until

GIB = 2**30
TOKEN = "s3cret-token-of-the-server"
HEAD = """
import glob, json, os, socket, subprocess, sys, time
cache = sys.argv[sys.argv.index("--out") + 1]
def tell(**found):
    json.dump(found, open(os.path.join(cache, "seen"), "w"))
def attempt(work):
    try:
        return work()
    except OSError as error:
        return type(error).__name__
"""


UNSHARE = {"x86_64": 272, "aarch64": 97}.get(platform.machine(), 0)
WITHOUT_UNSHARE = (
    f"import runpy; from engines.sandbox import seccomp; seccomp.refuse({{{UNSHARE}: None}}); "
    "runpy.run_module('engines.sandbox', run_name='__main__', alter_sys=True)"
)
"""The sandbox where the kernel refuses namespaces, as many containers do."""


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_SANDBOX", (sys.executable, "-c", WITHOUT_UNSHARE))


def attack(script: str, folder: Path, **limits: float) -> tuple[str, dict[str, Any]]:
    """Run a hostile compiler; the reason that the build was refused with, and what it could see."""
    cache, source = folder / "cache", folder / "upload" / "model.onnx"
    cache.mkdir()
    source.parent.mkdir()
    source.write_bytes(b"x")
    command = [sys.executable, "-c", HEAD + script]
    allowed: dict[str, Any] = {"timeout_s": 20, "memory_bytes": GIB, **limits}
    with pytest.raises(ModelRefused) as refused:
        asyncio.run(run_build(BuildRequest(source), cache, BuildLimits(**allowed), command))
    seen = cache / "seen"
    return str(refused.value), json.loads(seen.read_text()) if seen.exists() else {}


ENDINGS: dict[str, tuple[str, dict[str, float], str]] = {
    "by itself": ("sys.exit(4)", {}, "exit code 4"),
    "by the watch": ("time.sleep(600)", {"timeout_s": 3}, "it did not end within 3 s"),
    "by a signal": ("os.abort()", {}, "by SIGABRT"),
}


@pytest.fixture(autouse=True)
def _kernel() -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")


def test_it_reaches_no_listener_of_this_machine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        _, seen = attack(
            f"tell(tcp=attempt(lambda: str(socket.create_connection(('127.0.0.1', {port}), 2))),"
            f" udp=attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))))",
            tmp_path,
        )
        assert seen["tcp"] in ("PermissionError", "OSError")
        assert seen["udp"] == "OSError", "the network has no interface"
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", ["STREAM", "DGRAM"])
def test_it_reaches_no_socket_of_the_file_system(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not even one in a folder that it may write: what listens there speaks for others."""
    folder = tmp_path_factory.mktemp("s")
    number = getattr(socket, f"SOCK_{kind}")
    with socket.socket(socket.AF_UNIX, number) as listener:
        listener.bind(str(folder / "listener"))
        listener.setblocking(False)
        if kind == "STREAM":
            listener.listen()
        script = f"""
def reach(kind):
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.connect({str(folder / "listener")!r})
        made.send(b"x")
def by_pair():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.connect({str(folder / "listener")!r})
    one.send(b"x")
def talk():
    one, other = socket.socketpair()
    one.sendall(b"x")
    return other.recv(1).decode()
def ring():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return os.strerror(ctypes.get_errno()) if libc.syscall(425, 1, bytes(256)) < 0 else "made"
tell(made=attempt(lambda: reach(socket.SOCK_{kind})), pair=attempt(by_pair), talk=attempt(talk), ring=ring())
"""
        _, seen = attack(script, folder)
        assert seen == {"made": "PermissionError", "pair": "PermissionError", "talk": "x", "ring": os.strerror(1)}
        with pytest.raises(BlockingIOError):
            listener.accept() if kind == "STREAM" else listener.recv(1)


def test_what_the_kernel_has_no_filter_for_is_said() -> None:
    code = (
        "import platform; platform.machine = lambda: 'vax'; "
        "from engines.sandbox.__main__ import _restrict; _restrict([], [])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["log"].startswith("no restriction of sockets in the file system: no numbers of system calls are known")


SEGMENT = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = libc.shmget({key}, 4096, 0o1600)
tell(made=made >= 0)
"""


@pytest.mark.parametrize("filtered", [True, False])
def test_no_shared_memory_outlives_it(filtered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot make any; and where it can, the kernel keeps it for the build alone."""
    if not filtered:
        code = (
            "import runpy; from engines.sandbox import seccomp; seccomp.refuse_ways_out = lambda: None; "
            "runpy.run_module('engines.sandbox', run_name='__main__', alter_sys=True)"
        )
        monkeypatch.setattr(executor, "_SANDBOX", (sys.executable, "-c", code))
    key = 0x62697400 + os.getpid() % 256
    _, seen = attack(SEGMENT.format(key=key), tmp_path)
    assert seen == {"made": not filtered}
    libc = ctypes.CDLL(None, use_errno=True)
    left = libc.shmget(key, 0, 0)
    if left >= 0:
        libc.shmctl(left, 0, None)
    assert left < 0


def test_it_finds_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSERVE_ADMIN_TOKEN", TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    other = subprocess.Popen([sys.executable, "-c", "input()", "--admin-token", TOKEN], stdin=subprocess.PIPE)
    try:
        _, seen = attack(
            "def look():\n"
            "    files = [f'/proc/{pid}/{name}' for pid in range(1, 200000) for name in ('environ', 'cmdline')]\n"
            "    return [f for f in [*files, os.path.join(os.path.dirname(cache), 'token')] if readable(f)]\n"
            "def readable(path):\n"
            "    try:\n"
            f"        return b'{TOKEN[:6]}' + b'{TOKEN[6:]}' in open(path, 'rb').read()\n"
            "    except OSError:\n"
            "        return False\n"
            "tell(found=look(), env=[v for v in os.environ.values() if 's3cret' in v])",
            tmp_path,
        )
    finally:
        other.kill()
        other.communicate()
    assert seen == {"found": [], "env": []}


def test_it_writes_nowhere_else(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "kept").write_text("kept")
    script = (
        "base = os.path.dirname(cache)\n"
        "tell(new=attempt(lambda: open(base + '/beside/new', 'w').name),"
        " old=attempt(lambda: open(base + '/beside/kept', 'w').name),"
        " gone=attempt(lambda: os.unlink(base + '/beside/kept')),"
        " source=attempt(lambda: open(sys.argv[1], 'w').name),"
        " listed=attempt(lambda: os.listdir(base)))"
    )
    _, seen = attack(script, tmp_path)
    assert set(seen.values()) == {"PermissionError"}
    assert [path.name for path in beside.iterdir()] == ["kept"]
    assert (tmp_path / "upload" / "model.onnx").read_bytes() == b"x"


def test_what_it_may_read_in_proc_is_held_so_that_it_stays_the_same_file(tmp_path: Path) -> None:
    """The kernel forgets files of /proc that nobody holds, and makes them anew as others, which would be denied."""
    script = (
        "def held():\n"
        "    for number in range(64):\n"
        "        try:\n"
        "            yield os.fstat(number)\n"
        "        except OSError:\n"
        "            pass\n"
        "places = [(found.st_dev, found.st_ino) for found in held()]\n"
        "wanted = {name: os.stat(name) for name in ('/proc/cpuinfo', '/proc/meminfo', '/proc/stat')}\n"
        "tell(**{name: (found.st_dev, found.st_ino) in places for name, found in wanted.items()})"
    )
    _, seen = attack(script, tmp_path)
    assert seen == {"/proc/cpuinfo": True, "/proc/meminfo": True, "/proc/stat": True}


FILE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
open(cache + "/x", "wb").write(bytes(2**23))
"""
MEMFD = """
import mmap
file = os.memfd_create("held")
for _ in range(256): os.write(file, bytes(2**20))
"""
SHARED = """
import mmap
held = mmap.mmap(-1, 2**28)
for place in range(0, 2**28, 4096): held[place] = 1
held.madvise(mmap.MADV_DONTNEED)
time.sleep(15)
"""


@pytest.mark.parametrize(
    ("script", "limits", "reason"),
    [
        ("while True: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])", {"processes": 12},
         "processes, 12 are allowed"),
        ("n = 0\nwhile True:\n n += 1; open(f'{cache}/{n}', 'wb').write(bytes(2**20)); time.sleep(.001)",
         {"disk_bytes": 2**25}, "to disk, 32 MiB are allowed"),
        ("n = 0\nwhile True:\n n += 1; open(f'{n}', 'wb').write(bytes(2**20)); time.sleep(.001)",
         {"disk_bytes": 2**25}, "to disk, 32 MiB are allowed"),
        ("while True: pass", {"cpu_s": 2, "timeout_s": 60}, "CPU time, 2 s are allowed"),
        ("while True: subprocess.run([sys.executable, '-c', 'sum(range(10**6))'])", {"cpu_s": 2, "timeout_s": 60},
         "CPU time, 2 s are allowed"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass",
         {"cpu_s": 30, "timeout_s": 60}, "used up its CPU time, 30 s are allowed"),
        (FILE, {"file_bytes": 2**22}, "too large a file, 4 MiB are allowed"),
        ("open(cache + '/x', 'wb').write(bytes(2**23))", {"file_bytes": 2**22}, "File too large"),
        (MEMFD + "time.sleep(15)", {"memory_bytes": 2**27}, "MiB of memory, 128 MiB are allowed"),
        (MEMFD + "mapped = mmap.mmap(file, 2**28); os.close(file); time.sleep(15)", {"memory_bytes": 2**27},
         "MiB of memory, 128 MiB are allowed"),
        (SHARED, {"memory_bytes": 2**27}, "MiB of memory, 128 MiB are allowed"),
    ],
    ids=["fork", "fill the cache", "fill its own folder", "a busy loop", "busy children", "a limit of the kernel",
         "one large file", "one large file that is caught", "memory of a file", "memory of a closed file",
         "memory that is shared"],
)  # fmt: skip
def test_it_is_ended_for_what_it_takes(script: str, limits: dict[str, float], reason: str, tmp_path: Path) -> None:
    said, _ = attack(script, tmp_path, **limits)
    assert reason in said


LEAVES = (
    "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
    "  os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', 'escaped', cache])\n"
    " os._exit(0)\n"
    "os.wait()\n"
)
"""A process in a session of its own, whose parent has ended."""


def escaped(folder: Path) -> bool:
    return any(str(folder) in " ".join(_arguments(p)) for p in psutil.process_iter() if p.pid != os.getpid())


@pytest.mark.parametrize("ending", ["by itself", "by the watch", "by a signal"])
def test_what_leaves_its_group_and_session_is_ended_with_it(ending: str, tmp_path: Path) -> None:
    end, limits, reason = ENDINGS[ending]
    said, _ = attack(LEAVES + end, tmp_path, **limits)
    assert reason in said
    until(lambda: not escaped(tmp_path), "the escaped process is gone", timeout_s=5)


@pytest.mark.parametrize("ending", ["by itself", "by the watch", "by a signal"])
def test_the_same_without_namespaces(ending: str, tmp_path: Path, no_namespaces: None) -> None:
    end, limits, reason = ENDINGS[ending]
    said, _ = attack(LEAVES + end, tmp_path, **limits)
    assert reason in said
    until(lambda: not escaped(tmp_path), "the escaped process is gone", timeout_s=5)


def test_a_server_that_is_killed_leaves_nothing_without_namespaces(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    code = (
        "import asyncio, sys; from pathlib import Path; from app.builds import executor; "
        "from engines.request import BuildRequest; executor._SANDBOX = (sys.executable, '-c', sys.argv[2]); "
        "asyncio.run(executor.run_build(BuildRequest(Path(sys.argv[1], 'model.onnx')), Path(sys.argv[1]), "
        "executor.BuildLimits(60, 1 << 30), [sys.executable, '-c', sys.argv[3]]))"
    )
    script = HEAD + LEAVES + "tell(left=True); time.sleep(600)"
    server = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), WITHOUT_UNSHARE, script], cwd=ROOT)
    try:
        until((tmp_path / "seen").exists, "the child runs")
    finally:
        server.kill()
        server.wait()
    until(lambda: not escaped(tmp_path), "the escaped process is gone", timeout_s=10)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
