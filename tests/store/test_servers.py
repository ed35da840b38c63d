"""Servers that have a store in common: what one publishes all serve, and no request is lost on the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.onnx_models import linear
from tests.support.servers import ADMIN, ROOT, Server, running, until
from tests.support.stores import Store
from tests.support.uploads import ended, send

FP32 = {"precision": "fp32"}
KEY = {"BITSERVE_PLAN_KEY": "a key of many characters"}
CONVERGES_S = 5.0


def model(scale: float) -> bytes:
    data: bytes = linear(scale=scale).SerializeToString()
    return data


def scale_of(server: Server) -> float:
    """Which version answers: the first output of ones is (1 + 5 + 9 + 13) / 16 times the scale."""
    answer = server.infer("m", {"x": ("FP32", np.ones((1, 16)))})
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"][0]["data"][0]) / 1.75


@contextlib.contextmanager
def serving(store: Store, *flags: str, **env: str) -> Iterator[Server]:
    with running(store.url, *flags, env={**store.env, **KEY, **env}) as server:  # type: ignore[arg-type]
        yield server


def published(server: Server, scale: float) -> int:
    """Compile and publish the next version of `m`; its number."""
    status = ended(server, send(server, "m", model(scale), FP32))
    assert status["state"] == "succeeded", status["error"]
    return int(status["version"])


@contextlib.contextmanager
def traffic(*servers: Server) -> Iterator[None]:
    """Calls to each server all the while: every one is answered, and rightly."""
    stop: list[bool] = []

    def drive(server: Server) -> int:
        count = 0
        with httpx.Client(verify=False) as client:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
            while not stop:
                answer = client.post(f"{server.url}/v2/models/m/infer", json=body, timeout=20)
                assert answer.status_code == 200, answer.text
                assert answer.json()["outputs"][0]["data"][0] / 1.75 == pytest.approx(round(scale_of_answer(answer)))
                count += 1
        return count

    def scale_of_answer(answer: httpx.Response) -> float:
        return float(answer.json()["outputs"][0]["data"][0]) / 1.75

    with ThreadPoolExecutor(len(servers)) as pool:
        drivers = [pool.submit(drive, server) for server in servers]
        try:
            yield
        finally:
            stop.append(True)
        assert all(driver.result(60) > 0 for driver in drivers)


def wait_scale(server: Server, scale: float, timeout_s: float = 30.0) -> None:
    until(lambda: any(entry["state"] == "READY" for entry in server.index().values()), "a version is ready", timeout_s)
    until(lambda: scale_of(server) == pytest.approx(scale), f"scale {scale} is served", timeout_s)


def test_what_one_publishes_the_other_serves_and_no_request_is_lost(store):
    with serving(store) as one, serving(store, "--front-ends", "2") as other:
        assert published(one, 1.0) == 1
        other.wait_ready("m")
        with traffic(one, other):
            for scale in (2.0, 3.0):
                assert published(one, scale) == scale
                begun_s = time.monotonic()
                wait_scale(other, scale)
                assert time.monotonic() - begun_s < CONVERGES_S
            assert published(other, 4.0) == 4
            wait_scale(one, 4.0, CONVERGES_S)
        assert any("a plan has come from the store" in line for line in other.log)
        assert not any('"compiling m"' in line for line in other.log)
        folders = {key.rpartition("/")[0] for key in store.names() if key.startswith("m/")}
        assert len(folders) == 8, folders  # of each version, its place and its one attempt


def test_a_version_that_is_half_written_is_never_seen(store):
    with serving(store, "--watch-s", "0.1") as server:
        published(server, 1.0)
        attempt = "m/2/0123456789abcdef"
        store.put(f"{attempt}/model.onnx", model(2.0))
        store.put(f"{attempt}/manifest.json", b"{}")
        store.put("n/1/0123456789abcdef/model.onnx", model(2.0))
        assert published(server, 3.0) == 3  # and its number is not taken again
        wait_scale(server, 3.0)
        assert set(server.index()) == {("m", "3")}


def test_a_version_that_is_taken_back_goes_and_the_one_before_comes_back(store):
    with serving(store, "--watch-s", "0.2") as one, serving(store, "--watch-s", "0.2") as other:
        for scale in (1.0, 2.0):
            published(one, scale)
        wait_scale(other, 2.0)
        store.put("m/config.toml", b"versions = [1]\n")
        with traffic(one, other):
            for server in (one, other):
                wait_scale(server, 1.0)
        store.delete("m/config.toml")
        for server in (one, other):
            wait_scale(server, 2.0)
        with traffic(one, other):  # without a pin, too: what serves goes when the one before it serves
            store.delete("m/2/published.json")
            for server in (one, other):
                until(lambda server=server: set(server.index()) == {("m", "1")}, "it has gone")
                assert scale_of(server) == pytest.approx(1.0)
        store.delete("m/1/published.json")
        for server in (one, other):
            until(lambda server=server: not server.index(), "all have gone")


def test_what_serves_stays_until_the_version_before_has_come(store):
    """A server that never had it fetches it first; meanwhile the one that was taken back answers."""
    with serving(store) as one:
        for scale in (1.0, 2.0):
            published(one, scale)
    with serving(store, "--watch-s", "0.2") as server:
        wait_scale(server, 2.0)
        assert set(server.index()) == {("m", "2")}
        with traffic(server):
            store.delete("m/2/published.json")
            until(lambda: set(server.index()) == {("m", "1")}, "it has gone")
            assert scale_of(server) == pytest.approx(1.0)


def test_another_version_under_the_same_number_is_another_version(store):
    """Deleted, and published again: the copies of before are not it."""
    with serving(store, "--watch-s", "0.2") as one, serving(store, "--watch-s", "0.2") as other:
        published(one, 1.0)
        wait_scale(other, 1.0)
        store.delete("m/1/published.json")
        until(lambda: not one.index() and not other.index(), "it has gone")
        for key in store.names():
            if key.startswith("m/"):
                store.delete(key)
        assert published(other, 5.0) == 1
        wait_scale(one, 5.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda store, keys: store.put(keys["model.onnx"], model(9.0)), "is not what was published"),
        (lambda store, keys: store.delete(keys["model.onnx"]), "the store has no such object"),
        (lambda store, keys: store.put("m/2/published.json", b'{"attempt": "../x", "files": {}}'), "names something"),
        (lambda store, keys: store.put("m/2/published.json", b"x" * 2**21), "expected at most"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_published_is_not_served(store: Store, change: Callable[..., None], said: str) -> None:
    with serving(store) as one:
        published(one, 1.0)
        published(one, 2.0)
        keys = {key.rpartition("/")[2]: key for key in store.names() if key.startswith("m/2/")}
        change(store, keys)
        with serving(store, "--watch-s", "0.1") as other:
            until(lambda: said in other.index().get(("m", "2"), {}).get("reason", ""), said)
            assert other.state("m", 2) == "UNAVAILABLE"
        assert scale_of(one) == pytest.approx(2.0)


def test_plans_are_read_only_where_the_key_is_the_same(store):
    with serving(store) as one:
        published(one, 1.0)
    with serving(store, BITSERVE_PLAN_KEY="another key of many characters") as other:
        other.wait_ready("m")
        assert any("it is not signed with the plan_key" in line for line in other.log)
        assert any("compiling m" in line for line in other.log)
    (plan,) = [key for key in store.names() if key.startswith(".plans/") and key.endswith("/engine.blob")]
    store.put(plan, b"other code")
    with serving(store) as third:
        third.wait_ready("m")
        assert any("is not what was published" in line for line in third.log)
        assert scale_of(third) == pytest.approx(1.0)


def test_the_mirror_keeps_to_its_limit_and_the_oldest_goes_first(store, tmp_path):
    mirror, of_one = tmp_path / "mirror", tmp_path / "one"
    size = 300_000

    def padded(scale: float) -> bytes:
        found = linear(scale=scale)
        found.doc_string = "x" * size
        return bytes(found.SerializeToString())

    def configured(text: bytes) -> None:
        store.put("m/config.toml", text)
        for folder in (mirror, of_one):
            until(lambda folder=folder: (folder / "m" / "config.toml").read_bytes() == text, "the file has come")

    flags = ("--watch-s", "0.1", "--mirror", str(mirror), "--max-mirror-bytes", str(3 * size))
    with serving(store, "--mirror", str(of_one)) as one, serving(store, *flags) as other:
        for scale in (1.0, 2.0, 3.0, 4.0):
            status = ended(one, send(one, "m", padded(scale), FP32))
            assert status["state"] == "succeeded", status["error"]
            wait_scale(other, scale)
        assert sorted(path.name for path in mirror.glob("m/[0-9]*")) == ["3", "4"]
        store.put("m/config.toml", b"versions = [3]\n")  # wanted again, and last of all: so the next to go is 4
        for server in (one, other):
            wait_scale(server, 3.0)
        configured(b"versions = [5]\n")
        assert ended(one, send(one, "m", padded(6.0), FP32))["version"] == 5
        wait_scale(other, 6.0)
        assert sorted(path.name for path in mirror.glob("m/[0-9]*")) == ["3", "5"]
        configured(b"")
        size = 1_000_000
        assert ended(one, send(one, "m", padded(5.0), FP32))["state"] == "succeeded"
        until(lambda: "see setting max_mirror_bytes" in other.index().get(("m", "6"), {}).get("reason", ""), "said")
        assert scale_of(other) == pytest.approx(6.0)
        assert sorted(path.name for path in mirror.glob("m/[0-9]*")) == ["3", "5"], "nothing goes in vain"


def test_a_load_call_asks_the_store_at_once(store):
    with serving(store) as one, serving(store, "--watch-s", "0") as other:
        published(one, 1.0)
        assert not other.index()
        answer = httpx.post(f"{other.url}/v2/repository/models/m/load", headers=ADMIN, timeout=60)
        assert answer.status_code == 200, answer.text
        assert scale_of(other) == pytest.approx(1.0)
        answer = httpx.post(f"{other.url}/v2/repository/models/none/load", headers=ADMIN, timeout=60)
        assert answer.status_code == 400
        assert "no such model" in answer.json()["error"]


def test_a_folder_may_be_a_store(tmp_path):
    store = Store(f"file://{tmp_path / 'shared'}", {}, "", None)  # type: ignore[arg-type]
    with serving(store, "--watch-s", "0.2") as one, serving(store, "--watch-s", "0.2") as other:
        published(one, 2.0)
        wait_scale(other, 2.0)


def test_a_store_that_cannot_be_written_safely_is_read_and_builds_are_refused(
    rclone_server: Store, tmp_path: Path
) -> None:
    with serving(rclone_server) as server:
        until(lambda: any("the store is only read" in line for line in server.log), "it is said at the start")
        refused = send(server, "m", model(1.0), FP32)
        assert refused.status_code == 503
        assert "ignores conditional puts" in refused.json()["error"]
        assert httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json() == []
        assert not server.index()


def test_the_command_publishes_in_a_store(store, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model(6.0))
    flags = ["--name", "m", "--precision", "fp32", "--repository", store.url]
    command = [sys.executable, "-m", "app", "compile", str(tmp_path / "m.onnx"), *flags]
    env = {**os.environ, **store.env, **KEY}
    with serving(store, "--watch-s", "0.2") as server:
        made = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert (made.returncode, made.stdout) == (0, f"m version 1: {store.url}/m/1\n"), made
        wait_scale(server, 6.0)
        assert any("a plan has come from the store" in line for line in server.log)
    env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    made = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 1
    assert made.stderr.startswith("bitserve: cannot create .probe/")
    assert made.stderr.count("\n") == 1
