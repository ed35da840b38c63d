"""Stores that are slow, fail, or go away; servers that are killed while they write. Nothing that serves stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.store.bucket import open_bucket
from app.store.publications import fetch, publish, read
from app.store.published import File, Published, encode
from tests.store.test_servers import FP32, model, published, scale_of, serving, traffic, wait_scale
from tests.support.servers import ADMIN, until
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


def test_while_the_store_is_away_all_that_is_here_serves(proxy, tmp_path):
    mirror = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *mirror) as server:
        published(server, 2.0)
        proxy.hook = lambda method, path: -1
        with traffic(server):
            until(lambda: any("what is here serves on" in line for line in server.log), "it is said", 90)
        refused = send(server, "m", model(3.0), FP32)
        assert refused.status_code == 503
        assert "does not answer" in refused.json()["error"]
        assert scale_of(server) == pytest.approx(2.0)
    with serving(proxy.store, *mirror) as server:  # it starts without, too
        wait_scale(server, 2.0)
        assert any("what the mirror has is served" in line for line in server.log)
        proxy.hook = lambda method, path: 0
        assert published(server, 4.0) >= 2
        wait_scale(server, 4.0)


def test_a_download_that_was_killed_takes_no_room_after_the_next_start(proxy, tmp_path):
    flags = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store) as one:
        published(one, 2.0)
    begun, goes_on = threading.Event(), threading.Event()

    def hook(method: str, path: str) -> int:
        if method == "GET" and "/m/1/" in path and path.endswith("/model.onnx"):
            begun.set()
            goes_on.wait(60)
        return 0

    proxy.hook = hook
    staged = Path(flags[1], "m")
    with serving(proxy.store, *flags) as server:
        assert begun.wait(30)
        server.process.kill()
        server.process.wait(20)
        assert [entry.name for entry in staged.iterdir() if entry.name.startswith(".1.")], "it was under way"
    goes_on.set()
    proxy.hook = lambda method, path: 0
    with serving(proxy.store, *flags) as server:
        wait_scale(server, 2.0)
        assert [entry.name for entry in staged.iterdir()] == ["1"]


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


def test_a_version_that_another_publishes_meanwhile_is_left_to_it(proxy, reached, tmp_path):
    """A command has published version 1 when the server, which has chosen that too, is about to say that it has."""
    (tmp_path / "theirs.onnx").write_bytes(model(1.0))
    published_theirs = threading.Event()

    def hook(method: str, path: str) -> int:
        if method == "PUT" and path.endswith("/m/1/published.json") and not published_theirs.is_set():
            files: dict[str, Path | bytes] = {"model.onnx": tmp_path / "theirs.onnx", "manifest.json": b"{}"}
            asyncio.run(publish(open_bucket(reached.url), "m/1", files))
            published_theirs.set()
        return 0

    proxy.hook = hook
    with serving(proxy.store, "--watch-s", "0.2") as server:
        status = ended(server, send(server, "m", model(2.0), FP32))
        assert (status["state"], status["version"]) == ("succeeded", 2), status
        assert any("was published by another meanwhile" in line for line in status["log"])
        wait_scale(server, 2.0)
    assert published_theirs.is_set()
    whole = all_is_whole(reached, tmp_path / "copies")
    assert whole["m/1"] != whole["m/2"], "one's files are not the other's"


def test_builds_of_a_model_come_in_the_order_in_which_they_were_sent(store):
    """Whichever servers they are sent to, and which carry them out."""
    with serving(store, "--watch-s", "0.2") as one, serving(store, "--watch-s", "0.2") as other:
        answers = [(server, send(server, "m", model(scale), FP32)) for server, scale in ((one, 1.0), (other, 2.0))]
        statuses = [ended(server, answer) for server, answer in answers]
        assert [(status["state"], status["version"]) for status in statuses] == [("succeeded", 1), ("succeeded", 2)]
        for server in (one, other):
            wait_scale(server, 2.0)


def test_a_version_that_is_published_here_is_not_fetched_meanwhile(proxy):
    """The store has it, and the server that published it hears so only later: its own mirror sees it first."""
    told = threading.Event()

    def after(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("/m/1/published.json"):
            told.wait(2.0)  # nobody sets it: a slow answer

    proxy.after = after
    with serving(proxy.store, "--watch-s", "0.1") as server:
        assert published(server, 2.0) == 1
        wait_scale(server, 2.0)
    assert not [path for method, path in proxy.calls if method == "GET" and re.search(r"/m/1/\w+/model\.onnx", path)]


def test_large_files_come_in_parts_that_are_asked_for_again(proxy, reached, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.store.env["AWS_ENDPOINT_URL"])
    data = os.urandom(20 * 2**20)
    failed: list[str] = []

    async def there_and_back() -> None:
        bucket = open_bucket(reached.url)
        made, _ = await publish(bucket, "m/1", {"model.onnx": data})
        proxy.calls.clear()

        def hook(method: str, path: str) -> int:
            if method == "GET" and path.endswith("/model.onnx") and len(proxy.calls) == 3:
                failed.append(path)
                return -1
            return 0

        proxy.hook = hook
        await fetch(bucket, "m/1", made, tmp_path)

    asyncio.run(there_and_back())
    assert (tmp_path / "model.onnx").read_bytes() == data
    assert len(failed) == 1
    assert len(proxy.calls) == 4, "three parts, of which one was asked for twice"


def test_what_is_wrong_with_one_model_costs_the_others_nothing(proxy, store):
    """A mark that some tools make of a folder, a file that cannot be read, a configuration that no parser survives."""
    with serving(proxy.store, "--watch-s", "0.1") as one, serving(proxy.store, "--watch-s", "0.1") as other:
        published(one, 1.0)
        wait_scale(other, 1.0)
        proxy.hook = lambda method, path: 403 if "/locked/" in path else 0
        store.put("m/1", b"")
        store.put("m/2/0123456789abcdef/", b"")
        store.put("locked/labels.txt", b"a")
        store.put("deep/config.toml", b"x = " + b"[" * 100_000)
        store.put("deep/1/published.json", store.get("m/1/published.json"))
        empty = Published("0123456789abcdef", {"a": File(0, "0" * 64)})
        store.put("empty/1/published.json", encode(empty))
        for server in (one, other):
            until(lambda server=server: server.state("empty") == "UNAVAILABLE", "it has been looked at")
            assert "was published without model.onnx" in server.index()["empty", "1"]["reason"]
        published(one, 2.0)
        wait_scale(other, 2.0)
        assert httpx.get(f"{other.url}/v2/health/started").status_code == 200
    with serving(proxy.store) as third:
        until(lambda: httpx.get(f"{third.url}/v2/health/started").status_code == 200, "it has started")
        assert scale_of(third) == pytest.approx(2.0)


def test_a_load_call_has_its_version_however_long_it_takes(proxy):
    """Also one that the configuration does not ask for: looks meanwhile do not end its download."""
    with serving(proxy.store) as one:
        for scale in (1.0, 2.0):
            published(one, scale)
    with serving(proxy.store, "--watch-s", "0.1") as server:
        wait_scale(server, 2.0)
        slow = threading.Event()

        def hook(method: str, path: str) -> int:
            if "/m/1/" in path:
                slow.wait(1.0)
            return 0

        proxy.hook = hook
        answer = httpx.post(
            f"{server.url}/v2/repository/models/m/load", headers=ADMIN, timeout=60,
            json={"parameters": {"config": json.dumps({"versions": [1]})}},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        assert scale_of(server) == pytest.approx(1.0)


def test_a_model_that_was_unloaded_is_not_fetched(proxy):
    with serving(proxy.store) as one, serving(proxy.store, "--watch-s", "0.1") as other:
        published(one, 1.0)
        wait_scale(other, 1.0)
        assert httpx.post(f"{other.url}/v2/repository/models/m/unload", headers=ADMIN).status_code == 200
        published(one, 2.0)
        proxy.calls.clear()
        until(lambda: sum("list-type" in path for _, path in proxy.calls) > 20, "it has looked often")
        assert ("m", "2") not in other.index()
        assert other.state("m", 1) != "READY"


def test_a_server_that_does_not_watch_goes_on_until_it_has_seen_the_store(proxy):
    with serving(proxy.store) as one:
        published(one, 2.0)
    proxy.hook = lambda method, path: 503
    with serving(proxy.store, "--watch-s", "0") as server:
        assert httpx.get(f"{server.url}/v2/health/started").status_code == 503
        proxy.hook = lambda method, path: 0
        until(lambda: httpx.get(f"{server.url}/v2/health/started").status_code == 200, "it has started")
        wait_scale(server, 2.0)


def test_a_store_that_hangs_does_not_keep_a_server_that_is_told_to_stop(proxy, tmp_path):
    """It was about to publish; the next start does."""
    hangs, goes_on = threading.Event(), threading.Event()

    def hook(method: str, path: str) -> int:
        if method == "PUT" and path.endswith("/m/1/published.json") and not goes_on.is_set():
            hangs.set()
            goes_on.wait(60)
            return -1
        return 0

    proxy.hook = hook
    flags = ("--mirror", str(tmp_path / "mirror"), "--watch-s", "0.2")
    with serving(proxy.store, *flags) as server:
        answer = send(server, "m", model(2.0), FP32)
        assert hangs.wait(60)
        assert server.stop(25) == 0
    goes_on.set()
    with serving(proxy.store, *flags) as server:
        until(lambda: build_of(server, answer)["state"] == "succeeded", "it was gone on with")
        wait_scale(server, 2.0)
        assert set(server.index()) == {("m", "1")}
