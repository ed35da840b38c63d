"""A compile that says more than anybody could read: little of it is kept, and the server has its turns in between."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from app.builds.executor import BuildLimits, run_build
from app.builds.jobs import Builds, Limits, Tell
from app.builds.state import STAGES, Asked, BuildState, Event
from app.builds.store import BuildStore, now
from engines.errors import ModelRefused
from engines.request import BuildRequest
from tests.faults.test_killed_builds import Idle, put
from tests.support.onnx_models import linear
from tests.support.servers import Server, until
from tests.support.uploads import build_of, ended, send

pytestmark = pytest.mark.asks_no_engine
MOST_TOLD = 700
FLOOD = """
import json, sys
lines = [json.dumps(line) + "\\n" for line in (
    {"stage": "prove"}, {"stage": "measure"}, {"stage": "prove", "share": "0.001"}, {"stage": "no such stage"},
    {"stage": "done"}, {"log": "again"}, {"stage": "x" * 2000}, {"stage": "search", "share": "nan"},
)]
for number in range(20_000):
    sys.stdout.writelines(lines)
    sys.stdout.write(json.dumps({f"key {number}": "v" * 900}) + "\\n")
print(json.dumps({"error": "that was all"}))
sys.exit(3)
"""


def test_few_of_many_stages_are_told_and_never_two_in_one_turn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    told: list[str] = []
    turns: Counter[int] = Counter()

    async def flooded() -> None:
        turn = itertools.count()
        now_ = next(turn)

        async def others() -> None:
            nonlocal now_
            while True:
                now_ = next(turn)
                await asyncio.sleep(0)

        def progress(stage: str, share: float) -> None:
            told.append(stage)
            turns[now_] += 1

        other = asyncio.create_task(others())
        try:
            await run_build(
                BuildRequest(tmp_path / "model.onnx"), tmp_path, BuildLimits(120, 2**30),
                [sys.executable, "-c", FLOOD], progress,
            )  # fmt: skip
        finally:
            other.cancel()

    with caplog.at_level(logging.WARNING), pytest.raises(ModelRefused, match=r"^that was all$"):
        asyncio.run(flooded())
    assert 100 < len(told) < MOST_TOLD
    assert set(told) <= set(STAGES) - {"done"}
    assert max(turns.values()) == 1
    assert len([record for record in caplog.records if "again" in record.getMessage()]) == 20


class Flooding(Idle):
    """Work that tells the same two stages over and over, and then is done."""

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        for _ in range(1000):
            tell("prove", "", 0.0)
            tell("prove", "", 0.001)
        await asyncio.sleep(0)

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        pass


def test_a_stage_that_changes_nothing_is_no_event(tmp_path: Path) -> None:
    async def events() -> list[Event]:
        jobs = Builds(BuildStore(tmp_path), Flooding(), Limits(9, 9, 2**30))
        build = jobs.store.new_id()
        put(jobs.store, build, "m")
        jobs.start()
        try:
            return [event async for _, event in jobs.follow(build)]
        finally:
            await jobs.stop()

    found = asyncio.run(events())
    assert [event.stage for event in found] == ["prove", "done"]


def test_events_are_bounded_and_the_last_is_kept(tmp_path: Path) -> None:
    store = BuildStore(tmp_path)
    build = store.new_id()
    put(store, build, "m")
    for message in ("", "m" * 1000):
        event = Event(time=now(), state=BuildState.RUNNING, stage="s" * 5000, percent=1, message=message)
        for _ in range(300):
            store.append(build, event)
    assert (store.path(build) / "events.jsonl").stat().st_size < 2**20 + 10_000
    store.append(build, Event(time=now(), state=BuildState.FAILED, stage="x", percent=1, message="why"))
    assert store.events(build)[-1].message == "why"


class FloodedServer(Server):
    """Its compiler is the one above."""

    def _start(self, repository: Path, command: list[str], env: object, cwd: Path) -> None:
        own = [sys.executable, "-m", "tests.faults.flooded_server", FLOOD, *command[3:]]
        super()._start(repository, own, env, cwd)  # type: ignore[arg-type]


def test_a_server_answers_while_a_compile_floods_it(tmp_path: Path) -> None:
    server = FloodedServer(tmp_path)
    try:
        server.wait_live()
        answer = send(server, "m", linear().SerializeToString())
        folder = tmp_path / ".builds" / answer.headers["location"].rpartition("/")[2]
        until(lambda: build_of(server, answer)["percent"] >= STAGES["prove"], "it floods")
        assert httpx.get(f"{server.url}/v2/health/live", timeout=10).status_code == 200
        done = ended(server, answer)
        assert (done["state"], done["error"]) == ("failed", "that was all")
        assert len((folder / "events.jsonl").read_text().splitlines()) < MOST_TOLD
    finally:
        server.stop()
