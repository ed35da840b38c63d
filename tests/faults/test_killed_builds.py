"""A server that is killed in any stage of a build, and builds on disk that are damaged: the others are not held up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.builds.jobs import Builds, Limits, Tell
from app.builds.state import Asked, Progress
from app.builds.store import BuildStore, now
from engines.errors import BadRepository
from tests.support.onnx_models import linear, place
from tests.support.servers import ADMIN, ON_GPU, ROOT, Server, running, until

STAGES = ["queued", "guard", "read", "opset 21", "compare", "prove", "measure", "compile", "check", "publish", "load"]
if ON_GPU:  # begun anew after any of the others, a build goes the same way to the engine
    STAGES = STAGES[-3:]
MODEL = linear(scale=3).SerializeToString()


class DyingServer(Server):
    """Killed by itself in a stage of its first build."""

    def __init__(self, repository: Path, stage: str) -> None:
        self._stage = stage
        super().__init__(repository)

    def _start(self, repository: Path, command: list[str], env: Any, cwd: Path) -> None:
        own = [sys.executable, "-m", "tests.faults.dying_server", self._stage, *command[3:]]
        super()._start(repository, own, env, cwd)


def send(server: Server, model: str) -> httpx.Response:
    url = f"{server.url}/v2/repository/models/{model}/compile"
    return httpx.post(url, files={"model": MODEL}, headers=ADMIN, timeout=60)


def builds(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    return found


def all_ended(server: Server) -> bool:
    return all(build["state"] not in ("queued", "running") for build in builds(server))


@pytest.mark.parametrize("stage", STAGES)
def test_a_build_goes_on_whatever_stage_the_server_was_killed_in(stage: str, tmp_path: Path) -> None:
    dying = DyingServer(tmp_path, stage)
    dying.wait_live()
    try:
        send(dying, "m")
    except httpx.HTTPError:
        assert stage == "queued", "the upload is answered before the build begins"
    assert dying.process.wait(60) == -signal.SIGKILL
    dying.stop()
    with running(tmp_path) as server:
        until(lambda: all_ended(server), "the build has ended", timeout_s=120)
        (done,) = builds(server)
        wanted = {"state": "succeeded", "version": 1, "attempts": 1 if stage == "queued" else 2, "percent": 100}
        assert {key: done[key] for key in wanted} == wanted
        answer = server.infer("m", {"x": ("FP32", [[1.0] * 16])})
        assert answer.json()["outputs"][0]["data"] == pytest.approx([5.25, 6.0, 6.75, 7.5])
        events = httpx.get(f"{server.url}/v2/builds/{done['id']}/events", headers=ADMIN, timeout=30).text
        percents = [json.loads(line[6:])["percent"] for line in events.splitlines() if line.startswith("data: ")]
        assert percents == sorted(percents)


@pytest.mark.asks_no_engine
def test_a_build_that_takes_the_server_with_it_is_tried_twice_and_no_more(tmp_path: Path) -> None:
    first = DyingServer(tmp_path, "read")
    first.wait_live()
    send(first, "m")
    assert first.process.wait(60) == -signal.SIGKILL
    first.stop()
    again = [sys.executable, "-m", "tests.faults.dying_server", "read", "serve", "--repository", str(tmp_path)]
    second = subprocess.run([*again, "--port", "0"], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert second.returncode == -signal.SIGKILL
    with running(tmp_path) as server:
        (done,) = builds(server)
        assert (done["state"], done["error"]) == ("failed", "the server ended 2 times while this build ran")


DAMAGES = {
    "no JSON": ("request.json", b"\xff{", "its request.json cannot be read"),
    "another thing": ("request.json", b"[]", "its request.json cannot be read"),
    "an empty request": ("request.json", b"", "its request.json cannot be read"),
    "a state of another kind": ("state.json", b'{"state": "asleep"}', "its state.json cannot be read"),
    "half a state": ("state.json", b'{"state": "run', "its state.json cannot be read"),
    "a state that is a folder": ("state.json", None, "its state.json cannot be read"),
    "events that are a folder": ("events.jsonl", None, None),
    "events of bytes": ("events.jsonl", bytes(range(256)) * 9, None),
}


def test_damaged_builds_are_reported_and_hold_up_no_other(tmp_path: Path) -> None:
    store = BuildStore(tmp_path / ".builds")
    damaged = {}
    for number, (file, content, reason) in enumerate(DAMAGES.values()):
        build = f"20260101-000000-000000-{number:08x}"
        put(store, build, f"m{number}")
        damaged[build] = reason
        if content is None:
            (store.path(build) / file).mkdir()
        else:
            (store.path(build) / file).write_bytes(content)
    put(store, "20260101-000000-000000-ffffffff", "whole")
    with running(tmp_path) as server:
        until(lambda: all_ended(server), "all builds have ended", timeout_s=120)
        found = {build["id"]: build for build in builds(server)}
        assert set(found) == {*damaged, "20260101-000000-000000-ffffffff"}
        for build, reason in damaged.items():
            wanted = ("failed", reason) if reason else ("succeeded", None)
            assert (found[build]["state"], found[build]["error"]) == wanted
            one = httpx.get(f"{server.url}/v2/builds/{build}", headers=ADMIN)
            assert one.status_code == 200
            stream = httpx.get(f"{server.url}/v2/builds/{build}/events", headers=ADMIN, timeout=30)
            assert stream.status_code == 200
        assert found["20260101-000000-000000-ffffffff"]["state"] == "succeeded"
        assert server.state("whole") == "READY"
        assert send(server, "another").status_code == 202
        assert not [line for line in server.log if "Traceback" in line]


def put(store: BuildStore, build: str, model: str, data: bytes = MODEL) -> None:
    """A build that waits, as a server that was killed has left it."""
    with store.open(build) as staging:
        (staging / "input" / "model.onnx").write_bytes(data)
        asked = Asked(id=build, model=model, key=build, file_name="", sha256="", size_bytes=len(data), created=now())
        store.write_request(staging, asked)


class Idle:
    """Work that never ends."""

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        await asyncio.Event().wait()

    async def next_version(self, asked: Asked) -> int:
        return 1

    async def serves(self, asked: Asked, version: int) -> bool:
        raise AssertionError

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        raise AssertionError


class Unpublished(Idle):
    """Work whose version cannot be brought into service."""

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        tell("read", "", 0.0)

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        raise BadRepository("it does not load")


@pytest.mark.asks_no_engine
def test_a_build_that_failed_names_no_version(tmp_path: Path) -> None:
    async def end() -> Progress:
        jobs = Builds(BuildStore(tmp_path), Unpublished(), Limits(9, 9, 2**30))
        build = jobs.store.new_id()
        put(jobs.store, build, "m")
        jobs.start()
        async for _ in jobs.follow(build):
            pass
        await jobs.stop()
        return jobs.store.progress(build)

    ended = asyncio.run(end())
    assert (ended.state, ended.error, ended.version) == ("failed", "it does not load", None)


@pytest.mark.asks_no_engine
def test_a_build_that_is_removed_before_its_compile_has_ended_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was cancelled, and others that ended after it made it one too many."""

    async def cancel() -> None:
        jobs = Builds(BuildStore(tmp_path), Idle(), Limits(9, 9, 2**30))
        build = jobs.store.new_id()
        put(jobs.store, build, "m")
        jobs.start()
        while build not in jobs._running:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        await jobs.cancel(build)
        jobs.store.remove(build)
        while jobs._running:
            await asyncio.sleep(0)
        await jobs.stop()

    asyncio.run(cancel())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.asks_no_engine
def test_a_stream_ends_where_its_build_is_removed(tmp_path: Path) -> None:
    """Between two events, and while it waits for one; others are told nothing."""

    async def follow() -> None:
        jobs = Builds(BuildStore(tmp_path), Idle(), Limits(9, 9, 2**30))
        build, other = jobs.store.new_id(), jobs.store.new_id()
        for name in (build, other):
            put(jobs.store, name, "m")
            jobs.take(name)
        slow, waiting = jobs.follow(build), jobs.follow(build)
        assert (await anext(slow))[1].message == "accepted"
        assert (await anext(waiting))[1].message == "accepted"
        last = asyncio.ensure_future(anext(waiting, None))
        await asyncio.sleep(0)
        await jobs.cancel(build)
        jobs.store.remove(build)
        assert await last is None
        assert await anext(slow, None) is None
        assert [event.message async for _, event in jobs.follow(build)] == []
        assert (await anext(jobs.follow(other)))[1].message == "accepted"

    asyncio.run(follow())


def test_what_a_killed_publication_left_is_swept(tmp_path: Path) -> None:
    place(tmp_path, "m", linear())
    names = {".1.abc.staging": True, ".2.x_y.staging": True, ".notes.staging": False, ".3.staging": False}
    for name in names:
        (tmp_path / "m" / name).mkdir()
        (tmp_path / "m" / name / "model.onnx").write_bytes(MODEL)
        os.utime(tmp_path / "m" / name, (time.time() - 7200,) * 2)
    young = tmp_path / "m" / ".4.abc.staging"
    young.mkdir()
    with running(tmp_path) as server:
        server.wait_ready("m")
    left = {path.name for path in (tmp_path / "m").iterdir()}
    assert left == {"1", young.name, *(name for name, ours in names.items() if not ours)}
