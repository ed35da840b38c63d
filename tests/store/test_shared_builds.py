"""Builds of servers that share a store: killed, given back, taken over, told and cancelled by any of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.builds.shared.name import Name
from app.builds.shared.records import Note, Records
from app.builds.shared.servers import ServerRunner
from app.builds.shared.silence import Silence
from app.builds.state import Asked, BuildState, Event
from app.builds.store import BuildStore, now
from app.store.bucket import open_bucket
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
    r"/claim-1\.json", r"/state\.json", r"/engine\.blob", r"/\.plans/\w+/\w+/manifest\.json",
    r"/\.plans/.*/report\.json",
    r"/\.plans/\w+/published\.json", r"/m/1/\w+/model\.onnx", r"/m/1/\w+/manifest\.json", r"/m/1/published\.json",
    r"/ended\.json", r"/counted",
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


class Work:
    """Ends at once, unless it is to hang; counts what it was asked for."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs, self.compiled, self.published = hangs, 0, list[int]()

    async def compile(self, asked, folder, tell) -> None:
        assert (folder / "input" / "model.onnx").read_bytes() == b"a model"
        self.compiled += 1
        tell("compile", "", 0.5)
        if self.hangs:
            await asyncio.Event().wait()

    async def next_version(self, asked) -> int:
        return 1

    async def publish(self, asked, folder, version, tell) -> None:
        self.published.append(version)

    async def withdraw(self, asked, version) -> None:
        self.published.remove(version)


async def stored(records: Records, folder: Path) -> str:
    """A build that waits, as an upload leaves it."""
    build = BuildStore(folder).new_id()
    (folder / "model.onnx").write_bytes(b"a model")
    asked = Asked(id=build, model="m", key="k", file_name="", sha256="", size_bytes=7, created=now())
    event = Event(time=now(), state=BuildState.QUEUED, stage="queued", percent=0, message="accepted")
    await records.add(asked, {"model.onnx": folder / "model.onnx"}, event)
    return build


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


async def state_of(records: Records, build: str) -> tuple[str, int]:
    progress = (await records.note(await records.one(build))).progress
    return progress.state.value, progress.attempts


async def look(runner: ServerRunner, records: Records) -> None:
    await runner.look([seen for seen in await records.look() if seen.is_whole and not seen.has_ended])


async def come_to(runner: ServerRunner) -> None:
    while runner.running:
        await asyncio.sleep(0.01)


def runner_of(records: Records, work: Work, folder: Path, clock: Clock) -> ServerRunner:
    folder.mkdir(exist_ok=True)
    return ServerRunner(records, work, Name(folder), folder, lambda: None, Silence(records, now_s=clock))


@pytest.mark.anyio
async def test_who_is_not_heard_of_any_more_loses_its_build(reached, tmp_path):
    """Another takes it over after a minute of silence, not before; the one that comes back publishes nothing."""
    records, clock = Records(open_bucket(reached.url)), Clock()
    gone, other = Work(hangs=True), Work()
    one, two = (runner_of(records, work, tmp_path / name, clock) for work, name in ((gone, "one"), (other, "two")))
    build = await stored(records, tmp_path)
    await look(one, records)
    while not gone.compiled:
        await asyncio.sleep(0.01)
    await look(two, records)
    clock.s = 59.0
    await look(two, records)
    assert not two.running
    before = (await records.one(build)).life
    while (await records.one(build)).life == before:  # it beats
        await asyncio.sleep(0.1)
    clock.s = 61.0
    await look(two, records)
    assert not two.running, "something was heard of it meanwhile"
    task = one._task
    assert task is not None
    task.cancel()
    records_write, records.write_note = records.write_note, _never  # killed: it gives nothing back
    await come_to(one)
    records.write_note = records_write
    clock.s = 130.0
    await look(two, records)
    assert two.running
    await come_to(two)
    assert await state_of(records, build) == ("succeeded", 2)
    assert (gone.published, other.published) == ([], [1])


async def _never(build, note) -> None:
    """What a process that is killed writes."""


@pytest.mark.anyio
async def test_one_of_many_takes_a_build(reached, tmp_path):
    records, clock = Records(open_bucket(reached.url)), Clock()
    works = [Work() for _ in range(8)]
    runners = [runner_of(records, work, tmp_path / str(at), clock) for at, work in enumerate(works)]
    builds = [await stored(records, tmp_path) for _ in range(3)]
    while any([(await state_of(records, build))[0] != "succeeded" for build in builds]):
        await asyncio.gather(*(look(runner, records) for runner in runners))
        for runner in runners:
            await come_to(runner)
    assert sum(work.compiled for work in works) == 3


@pytest.mark.anyio
async def test_a_build_that_takes_its_process_along_does_so_twice(reached, tmp_path):
    records, clock = Records(open_bucket(reached.url)), Clock()
    build = await stored(records, tmp_path)
    for at in range(3):
        runner = runner_of(records, Work(hangs=at < 2), tmp_path / str(at), clock)
        clock.s += 100.0
        await look(runner, records)
        clock.s += 100.0
        await look(runner, records)
        while runner.running and (await state_of(records, build)) != ("running", at + 1):
            await asyncio.sleep(0.01)
        if runner._task is not None:
            real, records.write_note = records.write_note, _never
            runner._task.cancel()
            await come_to(runner)
            records.write_note = real
    assert (await state_of(records, build))[0] == "failed"
    error = (await records.note(await records.one(build))).progress.error
    assert error == "the process ended 2 times while this build ran"


@pytest.mark.anyio
async def test_cancelled_at_the_last_moment_its_version_is_taken_back(reached, tmp_path):
    """It had asked whether it was cancelled before it published, and was told so only afterwards."""
    records, work = Records(open_bucket(reached.url)), Work()
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    publish, begun, goes_on = work.publish, asyncio.Event(), asyncio.Event()

    async def slow(*arguments) -> None:
        begun.set()
        await goes_on.wait()
        await publish(*arguments)

    work.publish = slow
    await look(runner, records)
    await begun.wait()
    progress = (await records.note(await records.one(build))).progress
    assert progress.version == 1, "it is known before anything is published"
    ended_so = progress.model_copy(update={"state": BuildState.CANCELLED, "ended": now(), "version": None})
    assert await records.end(build, Note(progress=ended_so))
    await runner.cancelled(build)
    await look(runner, records)
    assert runner.running, "what publishes is not disturbed"
    goes_on.set()
    await come_to(runner)
    assert work.published == []
    assert (await state_of(records, build))[0] == "cancelled"


@pytest.mark.anyio
async def test_what_cannot_be_read_fails_and_is_not_carried_out(reached, tmp_path, store):
    records, work = Records(open_bucket(reached.url)), Work()
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    store.put(f".builds/{build}/request.json", b"{")
    await look(runner, records)
    await come_to(runner)
    progress = (await records.note(await records.one(build))).progress
    assert (progress.state.value, progress.error) == ("failed", "what was asked for cannot be read")
    assert work.compiled == 0
