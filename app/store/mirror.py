"""A folder of this machine that follows a store: what is published comes, what is taken back goes.

The folder is a repository like any other, and the rest of the server knows no other. While the store is away, what is
there stays and serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from app.store.bucket import Bucket
from app.store.errors import NotThere, StoreError
from app.store.local import held_in, keep_file, kept_files, new_version, note_files
from app.store.publications import fetch, read
from app.store.remote import AFTER_OURS, LARGEST_FILE_BYTES, Remote, Step, evictions, remote_of, steps
from engines.repository import withdraw_version

__all__ = ["Choose", "Follower", "Mirror"]

log = logging.getLogger(__name__)
_AT_ONCE = 2
_LONGEST_PAUSE_S = 60.0
Choose = Callable[[str, set[int]], set[int]]
"""Of a model and its published versions, those to have here."""


class Follower(Protocol):
    """Who serves what is in the folder."""

    def choose(self, model: str, numbers: set[int]) -> set[int]:
        """Versions that its configuration asks for; from any thread."""
        ...

    def needs(self, model: str, number: int) -> bool:
        """Whether a version is in service, wanted or not."""
        ...

    def note(self, model: str, number: int, reason: str, *, failed: bool = False) -> None:
        """A version is on its way, or cannot be fetched and is tried again."""
        ...

    def forget(self, model: str, number: int) -> None:
        """A version that was on its way is not wanted any more."""
        ...

    def reached(self) -> None:
        """The store has said what there is, and all that is wanted of it has been noted."""
        ...

    async def look(self) -> None:
        """The folder has changed."""
        ...


class _Failed(NamedTuple):
    tag: str
    times: int
    again_s: float


class Mirror:
    """All methods run on the event loop; one look at a time."""

    def __init__(self, bucket: Bucket, folder: Path, limit_bytes: int, follower: Follower) -> None:
        self._bucket, self._folder, self._limit_bytes, self._follower = bucket, folder, limit_bytes, follower
        self._turn, self._slots, self._room = asyncio.Lock(), asyncio.Semaphore(_AT_ONCE), asyncio.Lock()
        self._remote = Remote({}, {})
        self._fetching: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._failed: dict[tuple[str, int], _Failed] = {}
        self._coming_bytes = 0

    async def look(self) -> None:
        """Compare the store with the folder; downloads go on after this returns. Raises StoreError or OSError."""
        async with self._turn:
            held = await asyncio.to_thread(held_in, self._folder)  # first: what is published meanwhile is not removed
            self._remote = remote = remote_of(await self._bucket.list(after=AFTER_OURS))
            changed = await self._follow_files(remote)
            todo = await asyncio.to_thread(steps, remote, held, self._follower.choose)
            gone = [step for step in todo if not step.tag]
            for step in gone:
                log.info("%s/%d is no longer in the store", step.model, step.version)
                await asyncio.to_thread(withdraw_version, self._folder, step.model, step.version)
            for step in todo:
                if step.tag:
                    self._begin(step)
            self._end_unwanted({(step.model, step.version) for step in todo if step.tag})
            for step in todo:
                if step.tag and (step.model, step.version) not in self._failed:
                    self._follower.note(step.model, step.version, "waiting to be downloaded")
            self._follower.reached()
        if changed or gone:
            await self._follower.look()

    async def bring(self, model: str, choose: Choose) -> None:
        """Have the versions of a model here that `choose` wants, now. Raises StoreError with the reason where that
        fails, or OSError.
        """
        await self.look()
        tags = self._remote.versions.get(model, {})
        held = (await asyncio.to_thread(held_in, self._folder)).get(model, {})
        wanted = choose(model, set(tags))
        missing = [n for n in wanted if n not in held or held[n].tag != tags[n]]
        for number in missing:
            self._failed.pop((model, number), None)
        tasks = [task for n in missing if (task := self._begin(Step(model, n, tags[n]))) is not None]
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    async def watch(self, every_s: float) -> None:
        """Look again and again, with a little jitter; ever more rarely while the store is away."""
        failures = 0
        while every_s:
            pause_s = min(every_s * 2**failures, max(every_s, _LONGEST_PAUSE_S))
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            try:
                await self.look()
                failures = 0
            except (StoreError, OSError) as error:
                if not failures:
                    log.warning("the store is not followed for now, what is here serves on: %s", error)
                failures = min(failures + 1, 16)

    async def stop(self) -> None:
        """End downloads."""
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    # -- versions ------------------------------------------------------------------------------------------------

    def _begin(self, step: Step) -> asyncio.Task[None] | None:
        """The download under way, a new one, or None where one has failed just now."""
        key = step.model, step.version
        failed = self._failed.get(key)
        if key not in self._fetching:
            if failed is not None and failed.tag == step.tag and time.monotonic() < failed.again_s:
                return None
            task = self._fetching[key] = asyncio.get_running_loop().create_task(self._fetch(step))
            task.add_done_callback(lambda done: self._ended(step, done))
        return self._fetching[key]

    def _ended(self, step: Step, task: asyncio.Task[None]) -> None:
        key = step.model, step.version
        del self._fetching[key]
        if task.cancelled():
            self._follower.forget(*key)
        elif (error := task.exception()) is not None:
            times = self._failed[key].times + 1 if key in self._failed else 1
            pause_s = min(2.0**times, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            self._failed[key] = _Failed(step.tag, times, time.monotonic() + pause_s)
            log.warning("%s/%d cannot be fetched, and is tried again: %s", step.model, step.version, error)
            self._follower.note(*key, f"it cannot be fetched from the store: {error}", failed=True)
        else:
            self._failed.pop(key, None)

    def _end_unwanted(self, wanted: set[tuple[str, int]]) -> None:
        for key, task in list(self._fetching.items()):
            if key not in wanted:
                task.cancel()
        for key in [key for key in self._failed if key not in wanted]:
            del self._failed[key]
            self._follower.forget(*key)

    async def _fetch(self, step: Step) -> None:
        model, version, tag = step
        async with self._slots:
            place = f"{model}/{version}"
            published = await read(self._bucket, place)
            await self._make_room(published.size_bytes)
            try:
                self._follower.note(model, version, f"downloading {published.size_bytes / 1e6:.1f} MB")
                with new_version(self._folder, model, version, tag, published.size_bytes) as folder:
                    await fetch(self._bucket, place, published, folder)
            finally:
                self._coming_bytes -= published.size_bytes
        log.info("%s/%d has come from the store", model, version)
        await self._follower.look()

    async def _make_room(self, size_bytes: int) -> None:
        """Count what is coming, once it has room. StoreError where all that there is is needed."""
        async with self._room:
            held = await asyncio.to_thread(held_in, self._folder)
            needed = size_bytes + self._coming_bytes
            for step in evictions(held, self._keeps, needed, self._limit_bytes):
                log.info("%s/%d makes room in the mirror", step.model, step.version)
                await asyncio.to_thread(withdraw_version, self._folder, step.model, step.version)
                del held[step.model][step.version]
            total = needed + sum(one.size_bytes for versions in held.values() for one in versions.values())
            if total > self._limit_bytes:
                raise StoreError(
                    f"it has {size_bytes} bytes, and with what is served {total} would be in the mirror, which may "
                    f"have {self._limit_bytes}; see setting max_mirror_bytes"
                )
            self._coming_bytes += size_bytes

    def _keeps(self, model: str, number: int) -> bool:
        wanted = self._follower.choose(model, set(self._remote.versions.get(model, {})))
        return number in wanted or self._follower.needs(model, number)

    # -- files beside versions -----------------------------------------------------------------------------------

    async def _follow_files(self, remote: Remote) -> bool:
        """Configurations and labels first: they say which versions are wanted. Whether any has changed."""
        kept = await asyncio.to_thread(kept_files, self._folder)
        changed = False
        for model in {*kept, *remote.files}:
            tags, known = remote.files.get(model, {}), dict(kept.get(model, {}))
            if tags == known:
                continue
            for name in {*tags, *known}:
                if tags.get(name) != known.get(name):
                    data = await self._file(model, name) if name in tags else None
                    await asyncio.to_thread(keep_file, self._folder, model, name, data)
            await asyncio.to_thread(note_files, self._folder, model, tags)
            changed = True
        return changed

    async def _file(self, model: str, name: str) -> bytes | None:
        with contextlib.suppress(NotThere):  # it has gone since the listing
            return await self._bucket.read(f"{model}/{name}", LARGEST_FILE_BYTES)
        return None
