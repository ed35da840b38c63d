"""Peers are started, waited for and ended with all that they started; who does not start is absent, and said so."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.idle import Closed, idle_connections
from benchmarks.peers.models import tiny
from benchmarks.peers.processes import answers, started
from benchmarks.peers.setup import up
from benchmarks.peers.venvs import CACHE_VARIABLE, made
from benchmarks.wrk import Sent
from tests.benchmarks.faulty import CUT, serving
from tests.support.servers import free_port

CHILD = "import time; open('up', 'w'); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_all_that_a_process_started_is_ended(tmp_path: Path) -> None:
    with started([sys.executable, "-c", PARENT], tmp_path, (tmp_path / "up").exists) as tree:
        pids = [one.pid for one in tree.members()]
        assert len(pids) == 2
        assert tree.memory_mb() > 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_one_that_ends_says_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*no such model"),
        started([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], tmp_path, lambda: False),
    ):
        pass


def test_a_peer_that_does_not_start_is_absent_and_the_others_are_there(tmp_path: Path) -> None:
    def fails(models: object, folder: Path) -> object:
        raise RuntimeError("no wheel for this machine")

    class Fine:
        def __enter__(self) -> str:
            return "a peer"

        def __exit__(self, *_: object) -> None: ...

    modules = []
    for name, start in (("broken", fails), ("fine", lambda models, folder: Fine())):
        module = types.ModuleType(f"peers.{name}")
        module.NAME, module.up = name, start  # type: ignore[attr-defined]
        modules.append(module)
    with up(modules, [tiny()], tmp_path) as standing:
        assert standing.absent == {"broken": "did not start"}
        assert standing.peers == {"fine": "a peer"}


def test_readiness_is_an_answer_of_200() -> None:
    with serving(lambda number, call: (200 if number else 503, b"")) as (base, calls):
        assert not answers(f"{base}/ready", "POST")
        assert answers(f"{base}/ready", "POST")
        assert [call.path for call in calls] == ["/ready", "/ready"]
    assert not answers(f"http://127.0.0.1:{free_port()}/ready")


ASK = Sent("/", b"x", {})


def test_idle_connections_are_open_at_once_and_counted_where_they_end() -> None:
    with serving(lambda number, call: (200, b"")) as (base, calls):
        with idle_connections(base, 20, ASK):
            here = [one for one in psutil.Process().net_connections() if one.status == "ESTABLISHED"]
            assert sum(one.raddr.port == int(base.rsplit(":", 1)[1]) for one in here if one.raddr) == 20
        assert len(calls) == 20


@pytest.mark.parametrize("what", [503, CUT])
def test_a_server_that_does_not_take_them_all_is_seen(what: int) -> None:
    with (
        serving(lambda number, call: (what if number == 3 else 200, b"")) as (base, _),
        pytest.raises(Closed, match="connection 4 of 5"),
        idle_connections(base, 5, ASK),
    ):
        pass


def test_an_idle_connection_that_the_server_closes_later_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as theirs:

        def answer_three() -> None:
            for _ in range(3):
                one = theirs.enter_context(listening.accept()[0])
                one.recv(65536)
                one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        server = threading.Thread(target=answer_three)
        server.start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(Closed, match="3 of 3 idle connections were closed"), idle_connections(base, 3, ASK):
            theirs.close()
        server.join()


def wheel(folder: Path, version: str) -> str:
    path = folder / f"tinywheel-{version}-py3-none-any.whl"
    info = f"tinywheel-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("tinywheel.py", f"VERSION = {version!r}")
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinywheel\nVersion: {version}\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    return str(path)


def test_an_environment_is_made_once_and_anew_where_its_install_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    first = made("peer", (wheel(tmp_path, "1.0"),))
    assert first.is_relative_to(tmp_path / "cache")
    subprocess.run([str(first), "-c", "import tinywheel; assert tinywheel.VERSION == '1.0'"], check=True)
    witness = first.parent.parent / "witness"
    witness.touch()
    assert made("peer", (wheel(tmp_path, "1.0"),)) == first
    assert witness.exists(), "it was not made again"
    (first.parent.parent / "installed").unlink()
    assert made("peer", (wheel(tmp_path, "1.0"),)) == first
    assert not witness.exists(), "it was"
    assert made("peer", (wheel(tmp_path, "2.0"),)) != first
