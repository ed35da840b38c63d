"""Stores that are slow, fail, or go away; servers that are killed while they write. Nothing that serves stops."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.store.bucket import open_bucket
from app.store.publications import fetch, read
from tests.store.test_servers import FP32, model, published, scale_of, serving, traffic, wait_scale
from tests.support.servers import Server, until
from tests.support.storeproxy import StoreProxy, proxied
from tests.support.stores import Store
from tests.support.uploads import build_of, ended, send


@pytest.fixture
def proxy(store: Store) -> Iterator[StoreProxy]:
    with proxied(store) as made:
        yield made


def all_is_whole(store: Store, folder: Path) -> dict[str, str]:
    """Every publication can be fetched; by place, the SHA-256 of its model."""

    async def check() -> dict[str, str]:
        bucket = open_bucket(store.url)
        found = {}
        for name in store.names():
            place, _, last = name.rpartition("/")
            if last == "published.json":
                published = await read(bucket, place)
                into = folder / place.replace("/", "-")
                into.mkdir(parents=True)
                await fetch(bucket, place, published, into)
                found[place] = published.files.get("model.onnx", published.files["manifest.json"]).sha256
        return found

    return asyncio.run(check())


WRITES = 7
"""Of a build: three files of its plan and what says so, two of the version and what says so."""


@pytest.mark.parametrize("kill_at", range(1, WRITES + 2))
def test_killed_between_any_two_writes_it_goes_on_and_publishes_once(kill_at, proxy, reached, tmp_path):
    """The server is killed when it is about to do its 1st, 2nd, ... write; at last, when all are done."""
    flags = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *flags) as server:
        until(lambda: any("delete" in path for _, path in proxy.calls), "the store was probed", 20)
        killed = _killed_at_write(server, proxy, kill_at)
        answer = send(server, "m", model(2.0), FP32)
        assert killed.wait(30)
        server.process.wait(20)
    proxy.hook, proxy.after = lambda method, path: 0, lambda method, path: None
    with serving(proxy.store, *flags) as server:
        until(lambda: build_of(server, answer)["state"] in ("succeeded", "failed"), "the build has ended")
        assert build_of(server, answer)["state"] == "succeeded", build_of(server, answer)
        wait_scale(server, 2.0)
        assert set(server.index()) == {("m", "1")}
    assert set(all_is_whole(reached, tmp_path / "copies")) >= {"m/1"}


def _killed_at_write(server: Server, proxy: StoreProxy, number: int) -> threading.Event:
    """Kill it before the store does this write; after the last one where there is none of this number."""
    killed, lock, seen, done = threading.Event(), threading.Lock(), [], []

    def kill() -> None:
        os.kill(server.process.pid, signal.SIGKILL)
        killed.set()

    def before(method: str, path: str) -> int:
        with lock:
            if method == "PUT":
                seen.append(path)
                if len(seen) == number:
                    kill()
        return -1 if killed.is_set() else 0

    def after(method: str, path: str) -> None:
        with lock:
            if method == "PUT":
                done.append(path)
                if number > WRITES and len(done) == WRITES:
                    kill()

    proxy.hook, proxy.after = before, after
    return killed


def test_while_the_store_is_away_all_that_is_here_serves(proxy, tmp_path):
    mirror = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *mirror) as server:
        published(server, 2.0)
        proxy.hook = lambda method, path: -1
        with traffic(server):
            until(lambda: any("what is here serves on" in line for line in server.log), "it is said", 90)
        status = ended(server, send(server, "m", model(3.0), FP32))
        assert status["state"] == "failed"
        assert (
            "cannot create" in status["error"] or "cannot write" in status["error"] or "cannot list" in status["error"]
        )
        assert scale_of(server) == pytest.approx(2.0)
    with serving(proxy.store, *mirror) as server:  # it starts without, too
        wait_scale(server, 2.0)
        assert any("what the mirror has is served" in line for line in server.log)
        proxy.hook = lambda method, path: 0
        assert published(server, 4.0) >= 2
        wait_scale(server, 4.0)


def test_without_models_it_has_not_started_until_the_store_has_answered(proxy):
    """A replica that is new gets no traffic until it knows what it should serve, and serves it."""
    with serving(proxy.store) as one:
        published(one, 2.0)
    proxy.hook = lambda method, path: 503
    with serving(proxy.store, "--watch-s", "0.2") as server:
        answer = httpx.get(f"{server.url}/v2/health/started")
        assert answer.status_code == 503
        assert "its store was not reached yet" in answer.json()["error"]
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        proxy.hook = lambda method, path: 0
        until(lambda: httpx.get(f"{server.url}/v2/health/started").status_code == 200, "it has started")
        assert scale_of(server) == pytest.approx(2.0)


def test_what_fails_now_and_then_is_tried_again(proxy, reached, tmp_path):
    """Each call is answered 503 twice, and then passes: builds are published, replicas follow, no request is lost."""
    with serving(proxy.store, "--watch-s", "0.2") as one, serving(proxy.store, "--watch-s", "0.2") as other:
        counted: Counter[tuple[str, str]] = Counter()

        def hook(method: str, path: str) -> int:
            counted[method, path] += 1
            return 503 if counted[method, path] % 3 else 0

        proxy.hook = hook
        published(one, 1.0)
        wait_scale(other, 1.0)
        with traffic(one, other):
            published(one, 2.0)
            wait_scale(other, 2.0)
    assert "m/2" in all_is_whole(reached, tmp_path / "copies")


def test_a_slow_store_slows_no_answer(proxy):
    """A download of a second a call; meanwhile calls are answered as they were before."""
    with serving(proxy.store, "--watch-s", "0.2") as one, serving(proxy.store, "--watch-s", "0.2") as other:
        published(one, 1.0)
        wait_scale(other, 1.0)
        slow = threading.Event()

        def hook(method: str, path: str) -> int:
            slow.wait(1.0)  # nobody sets it: a call takes a second
            return 0

        proxy.hook = hook
        with traffic(one, other):
            published(one, 2.0)
            begun_s, longest_s = time.monotonic(), 0.0
            while scale_of(other) != pytest.approx(2.0):
                asked_s = time.monotonic()
                scale_of(other)
                longest_s = max(longest_s, time.monotonic() - asked_s)
                assert time.monotonic() < begun_s + 60
            assert longest_s < 0.9, "an answer waited for the store"


def test_of_two_writers_of_a_version_one_is_told_so(store):
    with serving(store, "--watch-s", "0") as one, serving(store, "--watch-s", "0") as other:
        statuses = []
        for number in range(4):
            answers = [
                (server, send(server, f"m{number}", model(scale), FP32)) for server, scale in ((one, 1.0), (other, 2.0))
            ]
            statuses += [ended(server, answer) for server, answer in answers]
        won = [status for status in statuses if status["state"] == "succeeded"]
        assert len(won) >= 4
        for status in statuses:
            if status["state"] != "succeeded":
                assert "was published by another meanwhile" in status["error"]
    places = [name for name in store.names() if name.endswith("/published.json") and not name.startswith(".")]
    assert len(places) == len(won), "each that was told of success has its version"
