"""Carry out one build that lies in a store: in a server, or in a Job's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from app.builds.jobs import Tell
from app.builds.shared.recorder import Recorder
from app.builds.shared.records import Records, Seen
from app.builds.state import Asked, BuildState, Progress
from app.builds.store import INPUT, now
from app.serving.errors import Stopping
from app.store.errors import StoreError, VersionTaken
from engines.errors import EngineError

__all__ = ["ATTEMPTS", "CarriedWork", "carry_out"]

log = logging.getLogger(__name__)
_GIVES_BACK_WITHIN_S = 5.0
ATTEMPTS = 2
"""A build whose process was killed runs once more; one that takes it along must not do so for ever."""


class CarriedWork(Protocol):
    """`app.builds.jobs.Work`, as far as it is needed here."""

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None: ...

    async def next_version(self, asked: Asked) -> int: ...

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None: ...

    async def withdraw(self, asked: Asked, version: int) -> None: ...


async def carry_out(
    records: Records, work: CarriedWork, seen: Seen, number: int, by: str, scratch: Path,
    publishes: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """The try `number` of a build, which the caller has claimed; how it ended is in the store afterwards.

    Raises StoreError (passing) or OSError where it could not be gone on with here: then, as where this is cancelled,
    the build is given back for others to take. Once it `publishes`, it is better left to come to its end: should the
    build have been cancelled, it takes its version back.
    """
    asked, before = await records.asked(seen), (await records.note(seen)).progress
    recorder = Recorder(records, seen.id, number, by, _begun(before))
    if not asked.model:
        await recorder.fail("what was asked for cannot be read")
        return
    if before.attempts >= ATTEMPTS and before.state is BuildState.RUNNING:
        await recorder.fail(f"the process ended {ATTEMPTS} times while this build ran")
        return
    try:
        await _carry(records, recorder, work, asked, before, scratch, publishes)
    except KeyError:
        log.info("build %s has been removed", seen.id)
    except StoreError as error:
        if error.is_passing:
            await _give_back(recorder)
            raise
        await recorder.fail(str(error))
    except EngineError as error:
        await recorder.fail(str(error))
    except OSError as error:
        if recorder.progress.attempts >= ATTEMPTS:
            await recorder.fail(f"nowhere was room for what is built: {error.strerror}")
            return
        await _give_back(recorder, counted=True)
        raise
    except (asyncio.CancelledError, Stopping):
        await _give_back(recorder)
        raise
    except Exception as error:
        log.exception("build %s", seen.id)
        await recorder.fail(f"an unexpected error of type {type(error).__name__}; see the log")


async def _carry(
    records: Records, recorder: Recorder, work: CarriedWork, asked: Asked, before: Progress, scratch: Path,
    publishes: Callable[[], None],
) -> None:  # fmt: skip
    if before.state is BuildState.RUNNING:
        recorder.tell("", "the process ended while this build ran; it runs once more", 0.0)
    await recorder.write()
    loop = asyncio.get_running_loop()
    writing = loop.create_task(recorder.keep_writing())
    steps = loop.create_task(_steps(records, recorder, work, asked, scratch, publishes))
    try:
        await asyncio.wait({writing, steps}, return_when=asyncio.FIRST_COMPLETED)
        if steps.done():
            await steps
        else:
            log.info("build %s is no longer carried out here", asked.id)
    finally:
        for task in (writing, steps):
            task.cancel()
        await asyncio.wait({writing, steps})


async def _give_back(recorder: Recorder, *, counted: bool = False) -> None:
    """Within a few seconds: who stops does not wait for a store that hangs, and silence says the same later.

    `counted`: it was a try.
    """
    attempts = recorder.progress.attempts - (not counted)
    recorder.progress = recorder.progress.model_copy(update={"state": BuildState.QUEUED, "attempts": attempts})
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(_GIVES_BACK_WITHIN_S):
            await asyncio.shield(recorder.write(given_back=True))


def _begun(before: Progress) -> Progress:
    return before.model_copy(
        update={"state": BuildState.RUNNING, "attempts": before.attempts + 1, "started": before.started or now()}
    )


async def _steps(
    records: Records, recorder: Recorder, work: CarriedWork, asked: Asked, scratch: Path, publishes: Callable[[], None]
) -> None:
    async with _fetched(records, asked.id, scratch) as folder:
        if recorder.progress.version is None:
            await work.compile(asked, folder, recorder.tell)
        version = await _published(recorder, work, asked, folder, publishes)
    if version is None or await recorder.end(BuildState.SUCCEEDED, None):
        return
    ended = (await records.note(await records.one(asked.id))).progress
    if ended.version != version:  # cancelled meanwhile, and not carried out by another as well
        await work.withdraw(asked, version)


async def _published(
    recorder: Recorder, work: CarriedWork, asked: Asked, folder: Path, publishes: Callable[[], None]
) -> int | None:
    """The version that was made; None where the build is no longer this try's. A number that somebody else takes in the
    meantime, such as a command, is left to that.
    """
    while True:
        version = recorder.progress.version
        if version is None:
            version = await work.next_version(asked)
            await recorder.update(version=version)  # first: should this process end now, the next takes the same number
        if not await recorder.holds():  # cancelled, or taken by another while this one was not heard of
            log.info("build %s is no longer carried out here", asked.id)
            return None
        publishes()
        try:
            await work.publish(asked, folder, version, recorder.tell)
        except VersionTaken as error:
            recorder.tell("", f"{error}; the next number is taken", 0.0)
            await recorder.update(version=None)
        else:
            return version


@contextlib.asynccontextmanager
async def _fetched(records: Records, build: str, scratch: Path) -> AsyncIterator[Path]:
    """A folder with what was sent, gone afterwards."""
    await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
    own = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".carried-", dir=scratch))
    try:
        folder = own / build
        await asyncio.to_thread((folder / INPUT).mkdir, parents=True)
        await records.fetch_input(build, folder / INPUT)
        yield folder
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, own, ignore_errors=True))
