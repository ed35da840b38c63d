"""Who carries out builds of a store: given back, taken over, cancelled at the last moment, and what is odd."""

from __future__ import annotations

import asyncio

import pytest

from app.builds.shared.records import Note, Records
from app.builds.state import BuildState
from app.builds.store import now
from app.store.bucket import open_bucket
from app.store.errors import StoreAway, VersionTaken
from tests.store.carrying import (
    Clock,
    Refused,
    Work,
    come_to,
    killed,
    look,
    pass_time,
    runner_of,
    state_of,
    stored,
)

OTHERS = b"""{"id": "other", "model": "m", "key": "", "file_name": "", "sha256": "", "size_bytes": 1, "created": ""}"""


@pytest.mark.anyio
async def test_who_is_not_heard_of_any_more_loses_its_build(reached, tmp_path):
    """Another takes it over after a minute of silence, not before; a minute in which nobody was heard of is none."""
    records, clock = Records(open_bucket(reached.url)), Clock()
    gone, other = Work(hangs=True), Work()
    one, two = (runner_of(records, work, tmp_path / name, clock) for work, name in ((gone, "one"), (other, "two")))
    build = await stored(records, tmp_path)
    await look(one, records)
    while not gone.compiled:
        await asyncio.sleep(0.01)
    await pass_time(two, records, clock, 55)
    assert two._task is None
    before = (await records.one(build)).life
    while (await records.one(build)).life == before:  # it beats
        await asyncio.sleep(0.1)
    await pass_time(two, records, clock, 55)
    assert two._task is None, "something was heard of it meanwhile"
    clock.s += 1000.0  # the store was away
    await look(two, records)
    assert two._task is None
    await killed(one, records)
    await pass_time(two, records, clock, 70)
    await come_to(two)
    assert await state_of(records, build) == ("succeeded", 2)
    assert (gone.published, other.published) == ([], [1])


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
    for attempt in (1, 2):
        runner = runner_of(records, Work(hangs=True), tmp_path / str(attempt), clock)
        await pass_time(runner, records, clock, 100)
        while await state_of(records, build) != ("running", attempt):
            await asyncio.sleep(0.01)
        await killed(runner, records)
    runner = runner_of(records, Work(), tmp_path / "3", clock)
    await pass_time(runner, records, clock, 100)
    await come_to(runner)
    assert (await state_of(records, build))[0] == "failed"
    error = (await records.note(await records.one(build))).progress.error
    assert error == "the process ended 2 times while this build ran"


@pytest.mark.anyio
async def test_who_has_lost_its_build_says_nothing_more_of_it(reached, tmp_path, monkeypatch):
    """It was not heard of, and another has it: neither what it finds out nor how it ends counts."""
    monkeypatch.setattr("app.builds.shared.recorder._BEAT_S", 0.2)
    records, clock, work = Records(open_bucket(reached.url)), Clock(), Work(hangs=True)
    one = runner_of(records, work, tmp_path / "one", clock)
    build = await stored(records, tmp_path)
    await look(one, records)
    while not work.compiled:
        await asyncio.sleep(0.01)
    assert await records.claim(build, 2, "another")
    progress = (await records.note(await records.one(build))).progress.model_copy(update={"attempts": 2})
    await come_to(one)  # a beat has seen it
    await records.write_note(build, Note(progress=progress, by="another", claim=2, beat=1))
    assert await state_of(records, build) == ("running", 2)
    assert work.published == []


@pytest.mark.anyio
@pytest.mark.parametrize("at", ["compile", "publish"])
@pytest.mark.parametrize(
    "error", [StoreAway("cannot write: it does not answer"), OSError(28, "No space left on device")]
)
async def test_what_passes_costs_no_build(at, error, reached, tmp_path, monkeypatch):
    """It is given back, and where the version may have been published already, the same one is published again."""
    monkeypatch.setattr("app.builds.shared.servers._PAUSE_S", 0.0)
    records, work = Records(open_bucket(reached.url)), Refused(error, at=at)
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    await look(runner, records)
    await come_to(runner)
    progress = (await records.note(await records.one(build))).progress
    assert (progress.state.value, progress.attempts) == ("queued", 0 if isinstance(error, StoreAway) else 1)
    assert progress.version == (1 if at == "publish" else None)
    await look(runner, records)
    await come_to(runner)
    assert (await state_of(records, build))[0] == "succeeded"
    assert work.published == [1]


@pytest.mark.anyio
async def test_a_disk_that_stays_full_ends_a_build(reached, tmp_path, monkeypatch):
    monkeypatch.setattr("app.builds.shared.servers._PAUSE_S", 0.0)
    full = OSError(28, "No space left on device")
    records, work = Records(open_bucket(reached.url)), Refused(full, full, full, at="compile")
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    for _ in range(2):
        await look(runner, records)
        await come_to(runner)
    progress = (await records.note(await records.one(build))).progress
    assert (progress.state.value, work.compiled) == ("failed", 2)
    assert progress.error == "nowhere was room for what is built: No space left on device"


@pytest.mark.anyio
async def test_a_number_that_a_command_has_taken_meanwhile_is_left_to_it(reached, tmp_path):
    records, work = (
        Records(open_bucket(reached.url)),
        Refused(VersionTaken("m/1 was published by another"), at="publish"),
    )
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    await look(runner, records)
    await come_to(runner)
    progress = (await records.note(await records.one(build))).progress
    assert (progress.state.value, progress.version, work.published) == ("succeeded", 2, [2])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("request.json", b"{}"),
        ("request.json", b" " * (2**21 + 1)),
        ("request.json", OTHERS),
        ("state.json", b" " * (2**21 + 1)),
        ("state.json", b'{"progress": {"state": "succeeded", "version": -1}}'),
        ("ended.json", b'{"progress": {"state": "running"}}'),
        ("ended.json", b'{"progress": {"state": "failed", "started": "x", "ended": "y"}}'),
        ("events-0.jsonl", b" " * (2**21 + 1)),
        ("events-7.jsonl", b"\xff\n[1]\n"),
        ("claim-1.json", b"[]"),
    ],
)  # fmt: skip
async def test_an_odd_object_costs_its_own_build_only(name, data, reached, tmp_path, store):
    records, work = Records(open_bucket(reached.url)), Work()
    runner = runner_of(records, work, tmp_path / "one", Clock())
    odd, other = await stored(records, tmp_path), await stored(records, tmp_path)
    store.put(f".builds/{odd}/{name}", data)
    for _ in range(3):
        await look(runner, records)
        await come_to(runner)
    assert (await state_of(records, other))[0] == "succeeded"
    seen = await records.one(odd)
    assert (await records.note(seen)).progress.state.is_final or name == "claim-1.json"
    assert isinstance(await records.events(seen), list)
    assert (await records.asked(seen)).model in ("", "m")


@pytest.mark.anyio
async def test_a_name_that_leads_out_is_no_model(reached, tmp_path, store):
    records, work = Records(open_bucket(reached.url)), Work()
    runner = runner_of(records, work, tmp_path / "one", Clock())
    build = await stored(records, tmp_path)
    asked = (await records.asked(await records.one(build))).model_copy(update={"model": "/elsewhere"})
    store.put(f".builds/{build}/request.json", asked.model_dump_json().encode())
    store.put(f".builds/{build}/state.json", b'{"progress": {"state": "queued", "version": 1}}')
    await look(runner, records)
    await come_to(runner)
    assert (await state_of(records, build))[0] == "failed"
    assert (work.compiled, work.published) == (0, [])


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
    assert runner._task is not None, "what publishes is not disturbed"
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
