"""Compiles that attack the machine: each is stopped, named where it is ended for it, and touches nothing else.

Needs a kernel with namespaces and Landlock; where either is missing a build says so in its log, and a part of this
cannot hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.builds.executor import BuildLimits, run_build
from engines.errors import ModelRefused
from engines.request import BuildRequest
from engines.sandbox import landlock
from tests.support.servers import until

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


def attack(script: str, folder: Path, **limits: int) -> tuple[str, dict[str, Any]]:
    """Run a hostile compiler; the reason that the build was refused with, and what it could see."""
    cache, source = folder / "cache", folder / "upload" / "model.onnx"
    cache.mkdir()
    source.parent.mkdir()
    source.write_bytes(b"x")
    command = [sys.executable, "-c", HEAD + script]
    with pytest.raises(ModelRefused) as refused:
        asyncio.run(run_build(BuildRequest(source), cache, BuildLimits(20, GIB, **limits), command))
    seen = cache / "seen"
    return str(refused.value), json.loads(seen.read_text()) if seen.exists() else {}


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


@pytest.mark.parametrize(
    ("script", "limits", "reason"),
    [
        ("while True: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])", {"processes": 12},
         "processes, 12 are allowed"),
        ("n = 0\nwhile True:\n n += 1; open(f'{cache}/{n}', 'wb').write(bytes(2**20)); time.sleep(.001)",
         {"disk_bytes": 2**25}, "to disk, 32 MiB are allowed"),
        ("n = 0\nwhile True:\n n += 1; open(f'{n}', 'wb').write(bytes(2**20)); time.sleep(.001)",
         {"disk_bytes": 2**25}, "to disk, 32 MiB are allowed"),
    ],
    ids=["fork", "fill the cache", "fill its own folder"],
)  # fmt: skip
def test_it_is_ended_for_what_it_takes(script: str, limits: dict[str, int], reason: str, tmp_path: Path) -> None:
    said, _ = attack(script, tmp_path, **limits)
    assert reason in said


def test_what_leaves_its_group_and_session_is_ended_with_it(tmp_path: Path) -> None:
    script = (
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
        "  os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', 'escaped', cache])\n"
        "time.sleep(1); sys.exit(4)"
    )
    said, _ = attack(script, tmp_path)
    assert "exit code 4" in said

    def escaped() -> bool:
        return any(str(tmp_path) in " ".join(_arguments(p)) for p in psutil.process_iter() if p.pid != os.getpid())

    until(lambda: not escaped(), "the escaped process is gone", timeout_s=5)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
