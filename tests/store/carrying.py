"""Builds that lie in a store, and work that is done at once, for those who carry them out."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.builds.shared.name import Name
from app.builds.shared.records import Records
from app.builds.shared.servers import ServerRunner
from app.builds.shared.silence import Silence
from app.builds.state import Asked, BuildState, Event
from app.builds.store import BuildStore, now
from app.store.errors import VersionTaken

__all__ = ["Clock", "Refused", "Work", "come_to", "killed", "look", "pass_time", "runner_of", "state_of", "stored"]


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
    while runner._task is not None:
        await asyncio.sleep(0.01)


async def pass_time(runner: ServerRunner, records: Records, clock: Clock, seconds: int) -> None:
    """Looks every few seconds, as a server does."""
    for _ in range(0, seconds, 5):
        clock.s += 5.0
        await look(runner, records)


def runner_of(records: Records, work: Work, folder: Path, clock: Clock) -> ServerRunner:
    folder.mkdir(exist_ok=True)
    return ServerRunner(records, work, Name(folder), folder, lambda: None, Silence(records, now_s=clock))


async def killed(runner: ServerRunner, records: Records) -> None:
    """Its task ends, and says nothing."""
    write, records.write_note = records.write_note, _never
    assert runner._task is not None
    runner._task.cancel()
    await come_to(runner)
    records.write_note = write


async def _never(build, note) -> None:
    """What a process that is killed writes."""


class Refused(Work):
    """Of its calls, each raises what the next one of `errors` is, while there are any."""

    def __init__(self, *errors: BaseException, at: str) -> None:
        super().__init__()
        self.errors, self.at = list(errors), at

    async def compile(self, asked, folder, tell) -> None:
        await super().compile(asked, folder, tell)
        if self.at == "compile" and self.errors:
            raise self.errors.pop(0)

    async def next_version(self, asked) -> int:
        return 1 + len([error for error in self.seen if isinstance(error, VersionTaken)])

    seen: tuple[BaseException, ...] = ()

    async def publish(self, asked, folder, version, tell) -> None:
        if self.at == "publish" and self.errors:
            self.seen = (*self.seen, self.errors[0])
            raise self.errors.pop(0)
        await super().publish(asked, folder, version, tell)
