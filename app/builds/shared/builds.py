"""The builds of all servers that have a store in common, as any of them tells and changes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from app.builds.jobs import Arriving, Limits, durations
from app.builds.shared.arrivals import Arrivals
from app.builds.shared.name import Name
from app.builds.shared.records import Note, Records, Seen
from app.builds.state import Asked, BuildState, Event, Progress, lasted_ns
from app.builds.store import INPUT, BuildStore, now
from app.serving.errors import QueueFull
from app.serving.stats import Histogram
from app.store.errors import StoreError
from app.store.writer import LEFT_S
from app.tasks import Tasks
from engines.repository import new_staging
from engines.request import BuildRequest

__all__ = ["Runner", "SharedBuilds"]

log = logging.getLogger(__name__)
_LOOK_EVERY_S, _FOLLOW_EVERY_S = 3.0, 1.0
_READ_ONLY_S = 60.0


class Runner(Protocol):
    """Who has builds carried out: servers themselves, or a cluster."""

    async def start(self) -> None: ...

    async def look(self, active: Sequence[Seen]) -> None:
        """See to those that have not ended: begin what nobody carries out, end what cannot go on."""
        ...

    async def cancelled(self, build: str) -> None:
        """A build was cancelled, which is in the store already."""
        ...

    def note(self, build: str) -> str:
        """Why a build waits, where there is something to tell of it."""
        ...

    def begin_stop(self) -> None: ...

    async def stop(self) -> None: ...


class SharedBuilds:
    """Satisfies `app.builds.service.BuildService`. Runs on the event loop; nothing here must survive the process."""

    def __init__(
        self, records: Records, runner: Callable[[Callable[[], None]], Runner], arrivals: Arrivals, limits: Limits,
        folder: Path, name: Name,
    ) -> None:  # fmt: skip
        """`folder` receives uploads on their way to the store. `runner` is made with what makes this look at once."""
        self._records, self._arrivals, self._limits = records, arrivals, limits
        self._folder, self._ids, self._name = folder, BuildStore(folder), name
        self._tasks = Tasks()
        self._wake = asyncio.Event()
        self._runner = runner(self._wake.set)
        self._active: dict[str, Seen] = {}
        self._running, self._last = 0, ""
        self._models: dict[str, str] = {}
        self._is_swept, self._read_only_until_s = asyncio.Event(), 0.0
        self._arriving = Arriving(limits.max_queued)
        self._stopping = asyncio.Event()
        self.ended_ns: Mapping[str, Histogram] = durations()

    @property
    def waiting(self) -> int:
        """Of all servers, as the store has them: the same everywhere."""
        return len(self._active) - self._running

    @property
    def running(self) -> int:
        return self._running

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tasks.spawn(self._keep_looking())

    def begin_stop(self) -> None:
        """Carry out nothing more; streams of events end."""
        self._stopping.set()
        self._runner.begin_stop()

    async def stop(self) -> None:
        self.begin_stop()
        self._tasks.cancel_all()
        await self._tasks.wait()
        await self._runner.stop()
        self._name.release()

    async def _keep_looking(self) -> None:
        try:
            if await asyncio.to_thread(self._name.take):  # else what is there may be another's, that lives
                await asyncio.to_thread(self._ids.sweep)
        except Exception:
            log.exception("what an earlier server has left stays for now")
        self._is_swept.set()
        await self._runner.start()
        is_away = False
        while True:
            try:
                await self._look()
                is_away = False
            except StoreError as error:
                if not is_away:
                    log.warning("builds are not looked at for now: %s", error)
                is_away = True
            except Exception:
                log.exception("builds could not be looked at")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _look(self) -> None:
        found = await self._records.look()
        whole = [seen for seen in found if seen.is_whole]
        self._active = {seen.id: seen for seen in whole if not seen.has_ended}
        self._last = found[-1].id if found else ""
        first, self._running = await self._first_of_models()
        self._arrivals.keep(self._active, {seen.id for seen in whole})
        if await self._may_write():
            await self._runner.look(first)
            await self._tidy(found)

    async def _first_of_models(self) -> tuple[list[Seen], int]:
        """Builds that may be carried out now, and how many somebody is at. Of one model they come in the order in which
        they were sent, for the last one is what is wanted to serve; one that was begun is not held up.
        """
        active, models, busy, running = list(self._active.values()), dict[str, str](), set[str](), 0
        for seen in active:
            with contextlib.suppress(KeyError):  # removed since the listing
                model = models[seen.id] = (await self._records.asked(seen)).model or seen.id
                running += bool(seen.has_begun and (await self._records.note(seen)).by)
                if seen.claims:
                    busy.add(model)
        found = []
        for seen in active:
            model = models.get(seen.id, seen.id)
            if seen.claims or model not in busy:
                found.append(seen)
                busy.add(model)
        self._models = models
        return found, running

    async def _may_write(self) -> bool:
        """A server may have no right to, or the store lose what two write: others build, and it asks again later."""
        if time.monotonic() < self._read_only_until_s:
            return False
        try:
            await self._records.check()
        except StoreError as error:
            if error.is_passing:
                raise
            if not self._read_only_until_s:
                log.warning("this server carries out no builds: %s", error)
            self._read_only_until_s = time.monotonic() + _READ_ONLY_S
            return False
        self._read_only_until_s = 0.0
        return True

    async def _tidy(self, found: Sequence[Seen]) -> None:
        """Count ends; remove what is not needed any more, and what killed servers have left."""
        ended = [seen for seen in found if seen.is_whole and seen.has_ended]
        for seen in ended:
            with contextlib.suppress(KeyError):  # another server has removed it
                if not seen.is_counted:
                    await self._count(seen)
                if seen.has_input:
                    await self._records.drop_input(seen.id)
        newest_s = max((seen.changed_s for seen in found), default=0.0)
        left = [seen for seen in found if not seen.is_whole and seen.changed_s < newest_s - LEFT_S]
        for seen in [*ended[: max(0, len(ended) - max(1, self._limits.keep))], *left]:
            await self._records.remove(seen.id)

    async def _count(self, seen: Seen) -> None:
        """In the metrics of the one server that was first to look."""
        progress = (await self._records.note(seen)).progress
        if progress.state.is_final and await self._records.count(seen.id):
            self.ended_ns[progress.state.value].observe(lasted_ns(progress))
            asked = await self._records.asked(seen)
            log.info("build %s of %s %s", seen.id, asked.model, progress.state.value, extra={"error": progress.error})

    # -- what clients do -----------------------------------------------------------------------------------------

    def require_turn(self) -> None:
        """Any server tells and changes all of them."""

    def admit(self) -> contextlib.AbstractContextManager[None]:
        return self._arriving.place(self.waiting, stopping=self._stopping.is_set())

    async def require_disk(self, size_bytes: int) -> None:
        """Raise QueueFull where so many more bytes do not fit beside what waits in the store and arrives here."""
        arrived = await asyncio.to_thread(self._ids.size_bytes)
        if size_bytes + arrived + sum(seen.size_bytes for seen in self._active.values()) > self._limits.max_bytes:
            raise QueueFull(
                f"the upload does not fit into the {self._limits.max_bytes} bytes that builds may take; see setting "
                "max_builds_bytes"
            )

    async def find_same(self, model: str, key: str) -> str | None:
        """The build of the same upload that waits or runs, or whose version serves: the last of the model only."""
        for seen in reversed([seen for seen in await self._records.look() if seen.is_whole]):
            with contextlib.suppress(KeyError):  # removed since the listing
                asked, progress = await self._records.asked(seen), (await self._records.note(seen)).progress
                if asked.model != model or progress.state in (BuildState.FAILED, BuildState.CANCELLED):
                    continue
                is_same = asked.key == key
                serves = not progress.state.is_final or await self._arrivals.serves(asked, progress.version)
                return seen.id if is_same and serves else None
        return None

    def new_id(self) -> str:
        return self._ids.new_id(self._last)

    @contextlib.asynccontextmanager
    async def receive(self, build: str) -> AsyncIterator[Path]:
        """A folder to receive an upload into, gone afterwards; `add` stores what it has."""
        await self._is_swept.wait()
        staging = await asyncio.to_thread(new_staging, self._folder / build)
        try:
            await asyncio.to_thread((staging / INPUT).mkdir)
            yield staging
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, staging))

    async def add(self, asked: Asked, staging: Path) -> None:
        """Store what was received, and have it carried out. Raises QueueFull where the store does not take it, and
        BadRepository where the model's configuration would not serve it.
        """
        accepted = Event(time=now(), state=BuildState.QUEUED, stage="queued", percent=0, message="accepted")
        try:
            await self._arrivals.require_wanted(asked)
            await self._records.add(asked, BuildRequest.of_folder(staging / INPUT).files(), accepted)
        except StoreError as error:
            raise QueueFull(f"the upload could not be stored: {error}") from error
        self._active[asked.id] = Seen(asked.id, {}, asked.size_bytes, 0.0)
        self._wake.set()

    async def cancel(self, build: str) -> bool:
        """End a build that waits or runs; False where it is too late. KeyError where there is none."""
        progress = (await self._records.note(await self._records.one(build))).progress
        if progress.state.is_final or (progress.state is BuildState.RUNNING and progress.version is not None):
            return False  # it is being published
        ended = progress.model_copy(update={"state": BuildState.CANCELLED, "ended": now(), "version": None})
        if not await self._records.end(build, Note(progress=ended)):
            return False
        self._active.pop(build, None)
        await self._runner.cancelled(build)
        self._wake.set()
        return True

    # -- telling -------------------------------------------------------------------------------------------------

    async def all(self) -> list[tuple[Asked, Progress]]:
        """All that are remembered, the oldest first."""
        found = []
        for seen in await self._records.look():
            with contextlib.suppress(KeyError):
                if seen.is_whole:
                    found.append(await self._told(seen))
        return found

    async def one(self, build: str) -> tuple[Asked, Progress]:
        """KeyError where there is none."""
        return await self._told(await self._records.one(build))

    async def _told(self, seen: Seen) -> tuple[Asked, Progress]:
        asked, progress = await self._records.asked(seen), (await self._records.note(seen)).progress
        return asked, await self._arrivals.told(asked, progress)

    async def events(self, build: str) -> list[Event]:
        """All events so far, and what there is to tell for the time being."""
        found, passing, _ = await self._events(build)
        return [*found, *([passing] if passing else [])]

    async def _events(self, build: str) -> tuple[list[Event], Event | None, bool]:
        """What has happened, what is only so for now, and whether that is all. The end comes once what was built is
        here.
        """
        seen = await self._records.one(build)
        found, (asked, progress) = await self._records.events(seen), await self._told(seen)
        is_coming = seen.has_ended and not progress.state.is_final
        waits = "" if seen.has_ended else self._runner.note(build) or self._why_it_waits(asked)
        if not (is_coming or waits):
            return found, None, progress.state.is_final
        shown = progress.model_dump(include={"state", "stage", "percent"})
        return found[:-1] if is_coming else found, Event(time=now(), message=waits, **shown), False

    def _why_it_waits(self, asked: Asked) -> str:
        """Where it is not the first of its model."""
        before = [build for build in self._active if build < asked.id and self._models.get(build) == asked.model]
        return f"it waits for build {before[0]} of its model" if before else ""

    async def follow(self, build: str, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """All events from number `after` on, those to come included, until the build has ended, or its removal, or the
        end of the server. The store may be away for a while.
        """
        told: Event | None = None
        stopping = asyncio.get_running_loop().create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                looking = asyncio.get_running_loop().create_task(self._events_somehow(build))
                await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():  # the store hangs, and the server is to stop
                    looking.cancel()
                    return
                events, passing, is_final = looking.result()
                for number, event in enumerate(events[after:], start=after + 1):
                    yield number, event
                after = max(after, len(events))
                if passing is not None and not _is_like(passing, told):
                    told = passing
                    yield after, passing
                if is_final:
                    return
                await asyncio.wait({stopping}, timeout=_FOLLOW_EVERY_S)
        finally:
            stopping.cancel()

    async def _events_somehow(self, build: str) -> tuple[list[Event], Event | None, bool]:
        """The same; nothing while the store is away, and the end where the build was removed."""
        try:
            return await self._events(build)
        except KeyError:
            return [], None, True
        except StoreError as error:
            log.warning("build %s is not followed for now: %s", build, error)
            return [], None, not error.is_passing


def _is_like(one: Event, other: Event | None) -> bool:
    return other is not None and one.model_copy(update={"time": other.time}) == other


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
