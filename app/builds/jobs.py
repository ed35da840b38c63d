"""The queue of builds: one at a time, the oldest first. Everything that must survive the process is in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from app.builds.lock import BuildsLock
from app.builds.state import Asked, BuildState, Event, Progress, lasted_ns, percent_of
from app.builds.store import BuildStore, now
from app.disk import is_full
from app.serving.errors import Elsewhere, QueueFull, Stopping
from app.serving.stats import Histogram
from app.words import printable
from engines.errors import EngineError

__all__ = ["Arriving", "Builds", "Limits", "Tell", "Work", "durations"]

log = logging.getLogger(__name__)
_ATTEMPTS = 2
"""A build whose server was killed runs once more; one that takes the server with it must not do so for ever."""
_PUBLISHES_WITHIN_S = 10.0
"""Once the server is told to stop: a store that hangs does not keep it; the next start goes on with that version."""
_TURN_S = 1.0
"""Between two looks whether the server that builds here has ended."""
_BUCKETS_NS = tuple(bound * 10**9 for bound in (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600))

Tell = Callable[[str, str, float], None]
"""Called on the event loop: a stage (or nothing), a line for the log (or nothing), how much of the stage is done."""


class Work(Protocol):
    """What the queue does with a build; all raise EngineError with a reason for the sender."""

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        """Compile the model in `folder`, if its version would be served. May be cancelled at any moment."""
        ...

    async def next_version(self, asked: Asked) -> int:
        """The number that the new version will have."""
        ...

    async def serves(self, asked: Asked, version: int) -> bool:
        """Whether what the model answers with now is this version, made of what was asked."""
        ...

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        """Make that version, unless an earlier try has, and bring it into service. Stopping: to be tried later."""
        ...


def durations() -> dict[str, Histogram]:
    """How long builds took, by how they ended."""
    return {state.value: Histogram(_BUCKETS_NS) for state in BuildState if state.is_final}


class Limits:
    """How many builds may wait, how many finished ones are kept, and how much disk all may take."""

    def __init__(self, max_queued: int, keep: int, max_bytes: int) -> None:
        self.max_queued, self.keep, self.max_bytes = max_queued, keep, max_bytes


class Arriving:
    """Uploads on their way, each of which has a place among those that wait."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued, self._count = max_queued, 0

    @contextlib.contextmanager
    def place(self, waiting: int, *, stopping: bool) -> Iterator[None]:
        """Keep a place for one. Raises QueueFull or Stopping where none may begin."""
        if stopping:
            raise Stopping("Server is stopping; it accepts no more builds")
        taken = waiting + self._count
        if taken >= self._max_queued:
            raise QueueFull(f"{taken} builds wait or arrive already; see setting max_queued_builds")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Builds:
    """Satisfies `app.builds.service.BuildService`. On the event loop: calls of its store are short enough for it."""

    def __init__(self, store: BuildStore, work: Work, limits: Limits) -> None:
        self.store, self._work, self._limits = store, work, limits
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._lock, self._has_begun = BuildsLock(store.folder), False
        self._waiting: set[str] = set()
        self._arriving = Arriving(limits.max_queued)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._publishing: set[str] = set()
        self._changed: dict[str, asyncio.Event] = {}
        self._worker: asyncio.Task[None] | None = None
        self._stopping = False
        self.ended_ns: Mapping[str, Histogram] = durations()
        """Of those that ended in this process."""

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Build, or wait until the server that builds in this repository has ended."""
        if not self._begin():
            log.warning("another server builds in this repository; this one serves, and builds when that has ended")
            self._worker = asyncio.get_running_loop().create_task(self._wait_for_turn())

    async def _wait_for_turn(self) -> None:
        while not self._begin():
            await asyncio.sleep(_TURN_S)

    def _begin(self) -> bool:
        """Take up what an earlier process left: what waited waits again, what ran runs again, once."""
        if not self._lock.take():
            return False
        self._has_begun = True
        self.store.sweep()
        for build in self.store.ids():
            try:
                self._take_up(build)
            except (OSError, KeyError):
                log.exception("build %s cannot be taken up", build)
        self.store.retain(self._limits.keep)
        self._worker = asyncio.get_running_loop().create_task(self._run())
        return True

    def _take_up(self, build: str) -> None:
        progress = self.store.progress(build)
        if progress.state is BuildState.RUNNING and progress.attempts >= _ATTEMPTS:
            self._end(build, BuildState.FAILED, f"the server ended {_ATTEMPTS} times while this build ran")
        elif not progress.state.is_final:
            if progress.state is BuildState.RUNNING:
                self._note(build, progress, "the server ended while this build ran; it runs once more")
            self._enqueue(build)

    def begin_stop(self) -> None:
        """Start no more builds and end the one under way: it goes back into the queue. Streams of events end."""
        self._stopping = True
        ending = [task for build, task in self._running.items() if build not in self._publishing]
        for task in [*ending, self._worker]:  # a version that is being published is brought to its end
            if task is not None and not task.cancelling():
                task.cancel()
        for changed in self._changed.values():
            changed.set()

    async def stop(self) -> None:
        self.begin_stop()
        if publishing := list(self._running.values()):
            await asyncio.wait(publishing, timeout=_PUBLISHES_WITHIN_S)
            for task in publishing:
                if not task.cancelling():  # one that ends a compile is left to it
                    task.cancel()
        await asyncio.gather(*self._running.values(), *([self._worker] if self._worker else []), return_exceptions=True)
        self._lock.release()

    # -- what clients do -----------------------------------------------------------------------------------------

    def require_turn(self) -> None:
        """Raise Elsewhere where another server builds in this repository: what it does is its to tell and to change."""
        if not self._has_begun:
            raise Elsewhere("another server builds in this repository; ask that one, or this one when it has ended")

    def admit(self) -> contextlib.AbstractContextManager[None]:
        return self._arriving.place(len(self._waiting), stopping=self._stopping)

    async def require_disk(self, size_bytes: int) -> None:
        """Raise QueueFull where so many more bytes do not fit; finished builds make room, the oldest first.

        None is removed where that would not be enough.
        """
        if not await asyncio.to_thread(self.store.make_room, size_bytes, self._limits.max_bytes):
            raise QueueFull(
                f"the upload does not fit into the {self._limits.max_bytes} bytes that builds may take; see setting "
                "max_builds_bytes"
            )

    async def find_same(self, model: str, key: str) -> str | None:
        """The build of the same upload that waits or runs, or whose version serves.

        Only the last that was sent for the model: after another upload, the first one again is what is wanted now.
        """
        asked, progress = self._newest(model)
        if asked is not None and asked.key == key and progress.state.is_final and progress.version is not None:
            if await self._work.serves(asked, progress.version):
                return asked.id
            asked, progress = self._newest(model)  # the same may have come meanwhile
        return asked.id if asked is not None and asked.key == key and not progress.state.is_final else None

    def _newest(self, model: str) -> tuple[Asked | None, Progress]:
        """The last build of a model that has not failed, if there is one."""
        ended = (BuildState.FAILED, BuildState.CANCELLED)
        for build in reversed(self.store.ids()):
            with contextlib.suppress(KeyError):  # removed meanwhile, in a thread
                asked, progress = self.store.asked(build), self.store.progress(build)
                if asked.model == model and progress.state not in ended:
                    return asked, progress
        return None, Progress()

    def new_id(self) -> str:
        return self.store.new_id()

    @contextlib.asynccontextmanager
    async def receive(self, build: str) -> AsyncIterator[Path]:
        """A folder to receive an upload into; it is the build's where `add` was called, else nothing is left."""
        with self.store.open(build) as staging:
            yield staging
        self.take(build)

    def take(self, build: str) -> None:
        """Queue a build that was stored just now."""
        self._note(build, self.store.progress(build), "accepted")
        self._enqueue(build)

    async def add(self, asked: Asked, staging: Path) -> None:
        """Queue what is received, once that has ended."""
        self.store.write_request(staging, asked)

    async def all(self) -> list[tuple[Asked, Progress]]:
        """All that are remembered, the oldest first."""
        found = []
        for build in self.store.ids():
            with contextlib.suppress(KeyError):  # removed meanwhile
                found.append(await self.one(build))
        return found

    async def one(self, build: str) -> tuple[Asked, Progress]:
        """KeyError where there is none."""
        return self.store.asked(build), self.store.progress(build)

    async def events(self, build: str) -> list[Event]:
        """All events so far."""
        return self.store.events(build)

    async def cancel(self, build: str) -> bool:
        """End a build that waits or runs; False where it is too late. KeyError where there is none."""
        state = self.store.progress(build).state
        if state.is_final or build in self._publishing:
            return False
        self._waiting.discard(build)
        self._end(build, BuildState.CANCELLED, None)
        task = self._running.get(build)
        if task is not None:
            task.cancel()
        return True

    async def follow(self, build: str, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """All events from number `after` on, those to come included, until the build has ended, or its removal, or the
        end of the server.
        """
        while True:
            changed = self._changed.setdefault(build, asyncio.Event())
            changed.clear()
            events, is_final = self._look(build)
            for number, event in enumerate(events[after:], start=after + 1):
                yield number, event
            after = max(after, len(events))
            if is_final:
                self._changed.pop(build, None)
            if self._stopping or is_final:
                return
            await changed.wait()

    def _look(self, build: str) -> tuple[list[Event], bool]:
        """All events so far, and whether there will be no more; the end is looked for first, since it comes last."""
        try:
            is_final = self.store.progress(build).state.is_final
            return self.store.events(build), is_final
        except KeyError:  # its time was over, and it was removed
            return [], True

    # -- the worker ----------------------------------------------------------------------------------------------

    def _enqueue(self, build: str) -> None:
        self._waiting.add(build)
        self._queue.put_nowait(build)

    async def _run(self) -> None:
        while True:
            build = await self._queue.get()
            if build not in self._waiting:
                continue  # cancelled meanwhile
            self._waiting.discard(build)
            task = self._running[build] = asyncio.get_running_loop().create_task(self._build(build))
            await asyncio.wait({task})
            del self._running[build]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("how build %s ended could not be stored", build, exc_info=error)

    async def _build(self, build: str) -> None:
        try:
            await self._steps(build)
        except (asyncio.CancelledError, Stopping):
            with contextlib.suppress(KeyError):  # cancelled, and removed to make room before its compile had ended
                progress = self.store.progress(build)
                if self._stopping and not progress.state.is_final:
                    self._update(build, state=BuildState.QUEUED, attempts=progress.attempts - 1)
        except EngineError as error:
            self._end(build, BuildState.FAILED, str(error))
        except Exception as error:
            log.exception("build %s", build)
            full = isinstance(error, OSError) and is_full(error)  # its own files: others say where they lie
            unexpected = f"an unexpected error of type {type(error).__name__}; see the log"
            self._end(build, BuildState.FAILED, "no space left in the repository" if full else unexpected)

    async def _steps(self, build: str) -> None:
        asked, folder, before = self.store.asked(build), self.store.path(build), self.store.progress(build)
        running = before.model_copy(
            update={"state": BuildState.RUNNING, "attempts": before.attempts + 1, "started": before.started or now()}
        )
        self.store.write_progress(build, running)

        def tell(stage: str, message: str, share: float) -> None:
            self._tell(build, stage, message, share)

        version = before.version
        if version is None:
            await self._work.compile(asked, folder, tell)
            version = await self._work.next_version(asked)
        self._publishing.add(build)
        try:
            self._update(build, version=version)  # first: should the server end now, the next try takes the same number
            await self._work.publish(asked, folder, version, tell)
            self._end(build, BuildState.SUCCEEDED, None)
        finally:
            self._publishing.discard(build)

    # -- notes ---------------------------------------------------------------------------------------------------

    def _tell(self, build: str, stage: str, message: str, share: float) -> None:
        progress = self.store.progress(build)
        if progress.state.is_final:
            return
        if stage:
            further = {"stage": stage, "percent": percent_of(stage, share, progress.percent)}
            if not message and progress == progress.model_copy(update=further):
                return  # a builder tells thousands of its steps, and none of these would be seen
            try:
                progress = self._update(build, **further)
            except OSError as error:  # a build does not fail for what it says of itself
                log.warning("a stage of build %s is not stored: %s", build, error.strerror)
                progress = progress.model_copy(update=further)
        self._note(build, progress, message)

    def _update(self, build: str, **changes: object) -> Progress:
        progress = self.store.progress(build).model_copy(update=changes)
        self.store.write_progress(build, progress)
        return progress

    def _update_somehow(self, build: str, **changes: object) -> Progress:
        """A file system may take a while to give room back, and the end of a build has to be stored now."""
        try:
            return self._update(build, **changes)
        except OSError:
            progress = self.store.progress(build).model_copy(update=changes)
            self.store.overwrite_progress(build, progress)
            return progress

    def _note(self, build: str, progress: Progress, message: str) -> None:
        event = Event(
            time=now(), message=printable(message), **progress.model_dump(include={"state", "stage", "percent"})
        )
        self.store.append(build, event)
        if build in self._changed:
            self._changed[build].set()

    def _end(self, build: str, state: BuildState, error: str | None) -> None:
        error = printable(error) if error is not None else None
        done: dict[str, object] = {"stage": "done", "percent": 100}
        if state is not BuildState.SUCCEEDED:
            done = {"version": None}  # it is not there, or has been withdrawn
        final = {"state": state, "error": error, "ended": now(), **done}
        try:
            progress = self._update(build, **final)
        except OSError:  # the disk may be full, and what is not needed any more makes room
            self.store.drop_input(build)
            progress = self._update_somehow(build, **final)
        with contextlib.suppress(KeyError):
            self.store.drop_input(build)
        self._note(build, progress, error or state.value)
        self.ended_ns[state.value].observe(lasted_ns(progress))
        log.info("build %s of %s %s", build, self.store.asked(build).model, state.value, extra={"error": error})
        self.store.retain(self._limits.keep, spare=build)
        self._changed.pop(build, None)
