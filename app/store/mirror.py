"""A folder of this machine that follows a store: what is published comes, what is taken back goes.

The folder is a repository like any other, and the rest of the server knows no other. While the store is away, what is
there stays and serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from app.store.bucket import Bucket
from app.store.errors import NotThere, StoreError, StoreRefused
from app.store.local import end_version, held_in, keep_file, kept_files, mark_used, note_files
from app.store.publications import fetch, read
from app.store.published import Published
from app.store.remote import AFTER_OURS, LARGEST_FILE_BYTES, Held, Remote, Step, evictions, remote_of, steps
from engines.repository import MODEL_FILE, new_staging, withdraw_version

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
        self._brought: Counter[tuple[str, int]] = Counter()
        self._was_reached = False
        self.published_here: set[tuple[str, int]] = set()
        """Versions that this process is publishing: it puts them into the folder itself."""

    async def look(self) -> None:
        """Compare the store with the folder; downloads go on after this returns. Raises StoreError or OSError."""
        async with self._turn:
            held = await asyncio.to_thread(held_in, self._folder)  # first: what is published meanwhile is not removed
            remote = await asyncio.to_thread(remote_of, await self._bucket.list(after=AFTER_OURS))
            self._remote = remote
            changed = await self._follow_files(remote)
            todo = await asyncio.to_thread(self._todo, remote, held)
            wanted = {(step.model, step.version) for step in todo if step.tag}
            for step in todo:
                if step.tag:
                    self._begin(step)
                else:
                    changed = await self._remove(step) or changed
            self._end_unwanted(wanted | self._brought.keys())
            self._was_reached = True
            self._follower.reached()
        if changed:
            await self._follower.look()

    def _todo(self, remote: Remote, held: Mapping[str, Mapping[int, Held]]) -> list[Step]:
        """In a thread. A download may have ended while the store was listed, and something be published from here."""
        wanted = {model: self._follower.choose(model, set(tags)) for model, tags in remote.versions.items()}
        mark_used(self._folder, wanted)
        now_held = held_in(self._folder)
        todo = [
            step
            for step in steps(remote, held, lambda model, _: wanted[model])
            if (step.model, step.version) not in self.published_here and not (step.tag and _has(now_held, step))
        ]
        # what serves stays until what takes over from it is here
        coming = {step.model for step in todo if step.tag and (step.model, step.version) not in self._failed}
        return [
            step
            for step in todo
            if step.tag or step.model not in coming or not self._follower.needs(step.model, step.version)
        ]

    async def _remove(self, step: Step) -> bool:
        log.info("%s/%d is no longer in the store", step.model, step.version)
        try:
            await asyncio.to_thread(withdraw_version, self._folder, step.model, step.version)
        except OSError as error:  # it costs this version only
            log.warning("%s/%d cannot be removed: %s", step.model, step.version, error.strerror)
            return False
        return True

    @contextlib.asynccontextmanager
    async def bring(self, model: str, choose: Choose) -> AsyncIterator[None]:
        """Have the versions of a model here that `choose` wants, now, and until the end of what is done with them.

        Raises StoreError with the reason where that fails, or OSError.
        """
        await self.look()
        tags = self._remote.versions.get(model, {})
        keys = [(model, number) for number in choose(model, set(tags))]
        self._brought.update(keys)
        try:
            held = await asyncio.to_thread(held_in, self._folder)
            missing = [step for _, n in keys if not _has(held, step := Step(model, n, tags[n]))]
            for step in missing:
                self._failed.pop((model, step.version), None)
            tasks = [task for step in missing if (task := self._begin(step)) is not None]
            await asyncio.gather(*(asyncio.shield(task) for task in tasks))
            yield
        finally:
            self._brought.subtract(keys)
            self._brought += Counter()  # without those that nobody brings any more

    async def watch(self, every_s: float) -> None:
        """Look again and again, with a little jitter; ever more rarely while the store is away. 0: until it was
        reached once.
        """
        failures = 0
        while every_s or not self._was_reached:
            pause_s = min((every_s or 1.0) * 2**failures, max(every_s, _LONGEST_PAUSE_S))
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            try:
                await self.look()
                failures = 0
            except Exception as error:  # whatever it is, the next look may be better
                if not isinstance(error, (StoreError, OSError)):
                    log.exception("the store could not be looked at")
                elif not failures:
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
            self._follower.note(*key, "waiting to be downloaded")
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
            said = str(error) if isinstance(error, StoreError) else getattr(error, "strerror", type(error).__name__)
            self._follower.note(*key, f"it cannot be fetched from the store: {said}", failed=True)
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
        model, version, _ = step
        async with self._slots:
            place = f"{model}/{version}"
            published = await read(self._bucket, place)
            if MODEL_FILE not in published.files:
                raise StoreRefused(f"{place} was published without {MODEL_FILE}")
            await self._make_room(published.size_bytes)
            try:
                self._follower.note(model, version, f"downloading {published.size_bytes / 1e6:.1f} MB")
                await self._download(step, published)
            finally:
                self._coming_bytes -= published.size_bytes
        log.info("%s/%d has come from the store", model, version)
        await self._follower.look()

    async def _download(self, step: Step, published: Published) -> None:
        """Files are synced, renamed and removed in threads: each may take seconds, and the loop answers requests."""
        model, version, tag = step
        staging = await asyncio.to_thread(new_staging, self._folder / model / str(version))
        try:
            await fetch(self._bucket, f"{model}/{version}", published, staging)
            await asyncio.to_thread(end_version, staging, self._folder, model, version, tag, published.size_bytes)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True))

    async def _make_room(self, size_bytes: int) -> None:
        """Count what is coming, once it has room. StoreError where all that there is is needed."""
        async with self._room:
            held = await asyncio.to_thread(held_in, self._folder)
            needed = size_bytes + self._coming_bytes
            kept = await asyncio.to_thread(self._kept, held)
            for step in evictions(held, lambda *key: key in kept, needed, self._limit_bytes):
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

    def _kept(self, held: Mapping[str, Mapping[int, Held]]) -> set[tuple[str, int]]:
        """Of what is here, what is wanted, serves, or is brought for a load."""
        wanted = {model: self._follower.choose(model, set(self._remote.versions.get(model, {}))) for model in held}
        return {
            (model, number)
            for model, versions in held.items()
            for number in versions
            if number in wanted[model] or self._follower.needs(model, number) or (model, number) in self._brought
        }

    # -- files beside versions -----------------------------------------------------------------------------------

    async def _follow_files(self, remote: Remote) -> bool:
        """Configurations and labels first: they say which versions are wanted. Whether any has changed."""
        kept = await asyncio.to_thread(kept_files, self._folder)
        changed = False
        for model in {*kept, *remote.files}:
            tags, known = remote.files.get(model, {}), kept.get(model, {})
            if tags != known:
                try:
                    await self._take_files(model, tags, known)
                    changed = True
                except (StoreError, OSError) as error:  # it costs this model only
                    said = str(error) if isinstance(error, StoreError) else error.strerror
                    log.warning("the files of %s are not followed for now: %s", model, said)
        return changed

    async def _take_files(self, model: str, tags: dict[str, str], known: dict[str, str]) -> None:
        for name in {*tags, *known}:
            if tags.get(name) != known.get(name):
                data = await self._file(model, name) if name in tags else None
                await asyncio.to_thread(keep_file, self._folder, model, name, data)
        await asyncio.to_thread(note_files, self._folder, model, tags)

    async def _file(self, model: str, name: str) -> bytes | None:
        with contextlib.suppress(NotThere):  # it has gone since the listing
            return await self._bucket.read(f"{model}/{name}", LARGEST_FILE_BYTES)
        return None


def _has(held: Mapping[str, Mapping[int, Held]], step: Step) -> bool:
    """Whether what a step would fetch is here."""
    found = held.get(step.model, {}).get(step.version)
    return found is not None and found.tag == step.tag
