"""Whoever carries out a build says how far it is: at once in this process, soon in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from app.builds.shared.records import Note, Records
from app.builds.state import BuildState, Event, Progress, percent_of
from app.builds.store import now
from app.store.errors import StoreError
from app.words import printable

__all__ = ["Recorder"]

log = logging.getLogger(__name__)
_PAUSE_S = 0.5
"""Between two writes: a builder tells thousands of its steps."""
_BEAT_S = 10.0
"""So often something is written, whether there is news or not: who is silent for long is taken for gone."""
_MOST_EVENTS = 4000


class Recorder:
    """Of one try. All methods run on the event loop."""

    def __init__(self, records: Records, build: str, number: int, by: str, progress: Progress) -> None:
        self._records, self._build, self._number, self._by = records, build, number, by
        self.progress = progress
        self._events: list[Event] = []
        self._beat, self._has_news = 0, asyncio.Event()
        self._written_events = 0
        self._writing = asyncio.Lock()

    def tell(self, stage: str, message: str, share: float) -> None:
        """A stage (or nothing), a line for the log (or nothing), how much of the stage is done."""
        if stage:
            further = {"stage": stage, "percent": percent_of(stage, share, self.progress.percent)}
            changed = self.progress.model_copy(update=further)
            if not message and changed == self.progress:
                return
            self.progress = changed
        self._append(message)
        self._has_news.set()

    def _append(self, message: str) -> None:
        if len(self._events) < _MOST_EVENTS:
            shown = self.progress.model_dump(include={"state", "stage", "percent"})
            self._events.append(Event(time=now(), message=printable(message), **shown))

    async def update(self, **changes: object) -> None:
        """Change what must be in the store before anything else is done. Raises StoreError."""
        self.progress = self.progress.model_copy(update=changes)
        await self.write()

    async def write(self, *, given_back: bool = False) -> None:
        """Events first: what is said of a build is not ahead of them."""
        async with self._writing:
            self._has_news.clear()
            if len(self._events) != self._written_events:
                count = len(self._events)
                await self._records.write_events(self._build, self._number, self._events)
                self._written_events = count
            self._beat += 1
            by = "" if given_back else self._by
            note = Note(progress=self.progress, by=by, claim=self._number, beat=self._beat)
            await self._records.write_note(self._build, note)

    async def keep_writing(self) -> None:
        """Until the build is another's, or has ended. A build does not fail for what it says of itself."""
        looked_s = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    await self._has_news.wait()
            try:
                if time.monotonic() - looked_s >= _BEAT_S:
                    looked_s = time.monotonic()
                    if not await self.holds():
                        return
                await self.write()
            except StoreError as error:
                log.warning("the progress of build %s is not stored: %s", self._build, error)
                self._has_news.set()
            await asyncio.sleep(_PAUSE_S)

    async def holds(self) -> bool:
        """Whether the build is still this try's. Raises StoreError."""
        try:
            return await self._records.holds(self._build, self._number)
        except KeyError:  # removed
            return False

    async def end(self, state: BuildState, error: str | None) -> bool:
        """Say how it ended; False where another had said so, such as who cancelled it. Raises StoreError."""
        await self.write()
        done: dict[str, object] = {"stage": "done", "percent": 100}
        if state is not BuildState.SUCCEEDED:
            done = {"version": None, "error": printable(error or "")}
        ended = self.progress.model_copy(update={"state": state, "ended": now(), **done})
        return await self._records.end(self._build, Note(progress=ended, by=self._by))

    async def fail(self, error: str) -> None:
        """Say that it failed, if that is still this try's to say. Raises StoreError."""
        if await self.holds():
            await self.end(BuildState.FAILED, error)
