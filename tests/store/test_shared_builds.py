"""Builds of servers that share a store: killed, given back, taken over, told and cancelled by any of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.store.test_servers import FP32, model, published, serving, wait_scale
from tests.store.test_store_faults import all_is_whole
from tests.support.servers import ADMIN, Server, until
from tests.support.storeproxy import StoreProxy, proxied
from tests.support.stores import Store
from tests.support.uploads import build_of, ended, send


@pytest.fixture
def proxy(store: Store) -> Iterator[StoreProxy]:
    with proxied(store) as made:
        yield made


UPLOAD = (
    r"/input/\w+/model\.onnx", r"/input/\w+/spec\.json", r"/input/published\.json", r"/events-0\.jsonl",
    r"/request\.json",
)  # fmt: skip
"""What a server writes of a build before it says that it has it."""
BUILD = (
    r"/claim-1\.json", r"/state\.json", r"/events-1\.jsonl", r"/engine\.blob", r"/\.plans/\w+/\w+/manifest\.json",
    r"/\.plans/.*/report\.json", r"/\.plans/\w+/published\.json", r"/m/1/\w+/model\.onnx", r"/m/1/\w+/spec\.json",
    r"/m/1/\w+/manifest\.json", r"/m/1/published\.json", r"/ended\.json", r"/counted",
)  # fmt: skip
"""And then: of the build, of its plan, of the version."""


@pytest.mark.parametrize("kill_at", UPLOAD)
def test_killed_while_it_stores_an_upload_nothing_of_it_counts(kill_at, proxy, reached, tmp_path):
    """Nobody was told that it has it; it is sent again."""
    flags = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *flags) as server:
        _killed_at_write(server, proxy, kill_at)
        with pytest.raises(httpx.TransportError):
            send(server, "m", model(2.0), FP32)
    proxy.hook = lambda method, path: 0
    with serving(proxy.store, *flags) as server:
        assert httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json() == []
        assert published(server, 2.0) == 1
        wait_scale(server, 2.0)


@pytest.mark.parametrize("kill_at", [*BUILD, "afterwards"])
def test_killed_between_any_two_writes_it_goes_on_and_publishes_once(kill_at, proxy, reached, tmp_path):
    """The server is killed when it is about to do one of its writes; at last, when all are done."""
    flags = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *flags) as server:
        until(lambda: any("delete" in path for _, path in proxy.calls), "the store was probed", 20)
        killed = _killed_at_write(server, proxy, kill_at)
        with contextlib.suppress(httpx.TransportError):  # it may be killed before it has answered
            answer = send(server, "m", model(2.0), FP32)
            if kill_at == "afterwards":
                ended(server, answer)
                os.kill(server.process.pid, signal.SIGKILL)
        assert kill_at == "afterwards" or killed.wait(60)
        server.process.wait(20)
    proxy.hook = lambda method, path: 0
    with serving(proxy.store, *flags) as server:
        until(lambda: one_build(server)["state"] in ("succeeded", "failed"), "the build has ended")
        assert one_build(server)["state"] == "succeeded", one_build(server)
        wait_scale(server, 2.0)
        assert set(server.index()) == {("m", "1")}
    assert set(all_is_whole(reached, tmp_path / "copies")) >= {"m/1"}


def one_build(server: Server) -> dict[str, Any]:
    (found,) = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    return found


def _killed_at_write(server: Server, proxy: StoreProxy, pattern: str) -> threading.Event:
    """Kill it before the store does a write of such a name."""
    killed, lock = threading.Event(), threading.Lock()

    def before(method: str, path: str) -> int:
        with lock:
            if method == "PUT" and re.search(f"{pattern}$", path.partition("?")[0]):
                os.kill(server.process.pid, signal.SIGKILL)
                killed.set()
            return -1 if killed.is_set() else 0

    proxy.hook = before
    return killed


def test_a_build_that_one_server_gives_back_another_takes_at_once(proxy):
    """It is told to stop while it compiles."""
    begun = threading.Event()

    def after(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("/state.json"):
            begun.set()

    proxy.after = after
    with serving(proxy.store, "--watch-s", "0.2") as one:
        answer = send(one, "m", model(2.0), FP32)
        assert begun.wait(30)
        with serving(proxy.store, "--watch-s", "0.2") as other:
            assert build_of(other, answer)["state"] == "running"
            assert one.stop(25) == 0
            begun_s = time.monotonic()
            status = ended(other, answer)
            assert (status["state"], status["attempts"]) == ("succeeded", 1), status
            assert time.monotonic() - begun_s < 50, "nobody has waited for its silence"


def test_any_server_tells_and_cancels_a_build(proxy):
    held, goes_on = threading.Event(), threading.Event()

    def hook(method: str, path: str) -> int:
        if method == "PUT" and path.endswith("/engine.blob"):
            held.set()
            goes_on.wait(60)
        return 0

    proxy.hook = hook
    with serving(proxy.store, "--watch-s", "0.2") as one, serving(proxy.store, "--watch-s", "0.2") as other:
        slow = send(one, "m", model(2.0), FP32)
        assert ended(other, slow)["state"] == "succeeded", "a plan is shared beside all else"
        assert held.is_set()
        goes_on.set()
        answers = [send(server, "n", model(scale), FP32) for server, scale in ((one, 3.0), (other, 4.0), (one, 5.0))]
        last = answers[-1]
        cancelled = httpx.delete(f"{other.url}{last.headers['location']}", headers=ADMIN)
        assert cancelled.status_code == 200, cancelled.text
        assert cancelled.json()["state"] == "cancelled"
        assert ended(one, last)["state"] == "cancelled"
        for server in (one, other):
            shown = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
            assert [build["model"] for build in shown] == ["m", "n", "n", "n"]
            again = httpx.delete(f"{server.url}{last.headers['location']}", headers=ADMIN)
            assert again.status_code == 400
            assert "cannot be cancelled any more" in again.json()["error"]
