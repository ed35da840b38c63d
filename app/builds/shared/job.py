"""The process of a Job: one build of a store, carried out once; how it ended is in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal

from app.builds.shared.carry import carry_out
from app.builds.shared.name import job_name
from app.builds.shared.records import Records, Seen
from app.builds.shared.silence import Silence
from app.builds.work import StoreWork
from app.plans import Plans
from app.settings import Settings
from app.store.errors import StoreError
from app.store.opened import open_store
from app.temporary import with_mirror

__all__ = ["run_job"]

log = logging.getLogger(__name__)
_LOOK_EVERY_S, _LONGEST_PAUSE_S = 2.0, 60.0


def run_job(settings: Settings, build: str) -> int:
    """The exit code: 0 where the store has how it ended, whichever way; else the Job is to try again.

    Raises StoreError where the store does not answer.
    """
    with contextlib.ExitStack() as leaving:
        settings = with_mirror(settings, leaving)
        settings.models_folder.mkdir(parents=True, exist_ok=True)
        plans = Plans(settings)
        leaving.callback(plans.close)
        try:
            return asyncio.run(_until_told(settings, plans, build))
        except KeyError:
            log.error("the store has no build %s", build)
            return 1


async def _until_told(settings: Settings, plans: Plans, build: str) -> int:
    """SIGTERM gives the build back: its pod has to go."""
    publishing = asyncio.Event()
    task = asyncio.get_running_loop().create_task(_run(settings, plans, build, publishing))

    def leave() -> None:
        # what is being published ends by itself, and takes its version back where the build was cancelled
        if not publishing.is_set() and not task.cancelling():
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    try:
        return await task
    except asyncio.CancelledError:
        log.warning("build %s was given back: this process was told to end", build)
        return 128 + signal.SIGTERM


async def _take(records: Records, build: str) -> tuple[Seen, str] | None:
    """The build as it was when it was claimed, and by which name; None where it has ended.

    Pods of one Job run one after another, so a claim of its name is that of a pod that is gone. Another's is left until
    that is silent: a server that builds itself, or a Job of another cluster that has the same store.
    """
    silence, by = Silence(records), f"{job_name(build)}-{secrets.token_hex(4)}"
    while True:
        seen = await records.one(build)
        if seen.has_ended:
            log.info("build %s has ended before", build)
            return None
        silence.look([seen])
        is_own = seen.claims and (await records.claimed_by(seen)).startswith(job_name(build))
        if (is_own or await silence.is_free(seen)) and await records.claim(build, seen.claims + 1, by):
            return seen, by
        await asyncio.sleep(_LOOK_EVERY_S)


async def _run(settings: Settings, plans: Plans, build: str, publishing: asyncio.Event) -> int:
    """Goes on once the store is back: what was compiled is in the cache, and the Job's deadline bounds it."""
    assert settings.store is not None
    opened = open_store(settings.store, settings.models_folder, settings.own_plan_key)
    plans.shared = opened.plans
    records, work = Records(opened.bucket), StoreWork(opened.versions, plans)
    scratch, pause_s = settings.builds_folder, _LOOK_EVERY_S
    while True:
        try:
            taken = await _take(records, build)
            if taken is None:
                return 0
            seen, by = taken
            await carry_out(records, work, seen, seen.claims + 1, by, scratch, publishing.set)
        except StoreError as error:
            if not error.is_passing:
                raise
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            publishing.clear()  # while it waits, it may be told to go
            log.warning("build %s waits for the store: %s", build, error)
            await asyncio.sleep(pause_s)
