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
from app.disk import is_full, naming_full_disk
from app.serving.errors import Stopping
from app.store.errors import StoreError
from engines.errors import EngineError

__all__ = ["ATTEMPTS", "CarriedWork", "carry_out"]

log = logging.getLogger(__name__)
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

    Raises StoreError where it cannot be said there. Cancelled, the build is given back for others to take. Once it
    `publishes`, it is better left to come to its end: should the build have been cancelled, it takes its version back.
    """
    asked, before = await records.asked(seen), (await records.note(seen)).progress
    recorder = Recorder(records, seen.id, number, by, _begun(before))
    if not asked.model:
        await recorder.end(BuildState.FAILED, "what was asked for cannot be read")
        return
    if before.attempts >= ATTEMPTS and before.state is BuildState.RUNNING:
        await recorder.end(BuildState.FAILED, f"the process ended {ATTEMPTS} times while this build ran")
        return
    if before.state is BuildState.RUNNING:
        recorder.tell("", "the process ended while this build ran; it runs once more", 0.0)
    await recorder.write()
    writing = asyncio.get_running_loop().create_task(recorder.keep_writing())
    try:
        async with _fetched(records, seen.id, scratch) as folder:
            await _steps(records, recorder, work, asked, folder, number, publishes)
    except (asyncio.CancelledError, Stopping):
        recorder.progress = recorder.progress.model_copy(
            update={"state": BuildState.QUEUED, "attempts": recorder.progress.attempts - 1}
        )
        with contextlib.suppress(StoreError):
            await asyncio.shield(recorder.write(given_back=True))
        raise
    except KeyError:
        log.info("build %s has been removed", seen.id)
    except EngineError as error:
        await recorder.end(BuildState.FAILED, str(error))
    except Exception as error:
        log.exception("build %s", seen.id)
        full = isinstance(error, OSError) and is_full(error)
        unexpected = f"an unexpected error of type {type(error).__name__}; see the log"
        await recorder.end(BuildState.FAILED, "no space left for what is built" if full else unexpected)
    finally:
        writing.cancel()
        await asyncio.wait({writing})


def _begun(before: Progress) -> Progress:
    return before.model_copy(
        update={"state": BuildState.RUNNING, "attempts": before.attempts + 1, "started": before.started or now()}
    )


async def _steps(
    records: Records, recorder: Recorder, work: CarriedWork, asked: Asked, folder: Path, number: int,
    publishes: Callable[[], None],
) -> None:  # fmt: skip
    version = recorder.progress.version
    if version is None:
        await work.compile(asked, folder, recorder.tell)
        version = await work.next_version(asked)
        await recorder.update(version=version)  # first: should this process end now, the next takes the same number
    if not await records.holds(asked.id, number):  # cancelled, or taken by another while this one was not heard of
        log.info("build %s is no longer carried out here", asked.id)
        return
    publishes()
    await work.publish(asked, folder, version, recorder.tell)
    if not await recorder.end(BuildState.SUCCEEDED, None):
        ended = (await records.note(await records.one(asked.id))).progress
        if ended.version != version:  # cancelled meanwhile, and not carried out by another as well
            await work.withdraw(asked, version)


@contextlib.asynccontextmanager
async def _fetched(records: Records, build: str, scratch: Path) -> AsyncIterator[Path]:
    """A folder with what was sent, gone afterwards."""
    with naming_full_disk("the folder of builds"):
        await asyncio.to_thread(scratch.mkdir, parents=True, exist_ok=True)
        own = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".carried-", dir=scratch))
        try:
            folder = own / build
            (folder / INPUT).mkdir(parents=True)
            await records.fetch_input(build, folder / INPUT)
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, own, ignore_errors=True))
