"""Builds in a store, for servers that have one in common. Objects of `.builds/<id>/`:

input/            what was sent, as a publication (`app.store.published`)
request.json      what was asked; made once, after the input: from here on there is a build
claim-<n>.json    who carries it out, at the n-th try; made once
state.json        how far it is; written by the last who claimed it
events-<n>.jsonl  what happened in that try; 0: before any
ended.json        how it ended; made once, so the first to say it decides
counted           made once, by the server that has it in its metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from app.builds.state import Asked, BuildState, Event, Progress
from app.builds.store import INPUT as _INPUT
from app.builds.store import is_build_id, unreadable
from app.store.bucket import Bucket, Object
from app.store.errors import AlreadyThere, NotThere, StoreError, StoreRefused
from app.store.publications import fetch, publish, read
from engines.repository import is_model_name

__all__ = ["FOLDER", "Claim", "Note", "Records", "Seen"]

FOLDER = ".builds"
_REQUEST, _STATE, _ENDED, _COUNTED = "request.json", "state.json", "ended.json", "counted"
_CLAIM, _EVENTS = re.compile(r"claim-([0-9]{1,6})\.json"), re.compile(r"events-([0-9]{1,6})\.jsonl")
_LARGEST_BYTES = 2**21
_MOST_REMEMBERED_BYTES = 2**25


class Note(BaseModel):
    """`state.json` and `ended.json`. `beat` counts up, so that others see that somebody is at it."""

    model_config = ConfigDict(frozen=True)

    progress: Progress
    by: str = ""
    """Who wrote it; empty where a build was given back, for others to take."""
    claim: int = 0
    beat: int = 0


class Claim(BaseModel):
    """`claim-<n>.json`."""

    model_config = ConfigDict(frozen=True)

    by: str


class Seen(NamedTuple):
    """A build as a listing shows it: the tags of its objects by their names below its folder, and its bytes."""

    id: str
    tags: Mapping[str, str]
    size_bytes: int
    changed_s: float
    """Unix time, by the store's clock."""

    @property
    def is_whole(self) -> bool:
        return _REQUEST in self.tags

    @property
    def has_ended(self) -> bool:
        return _ENDED in self.tags

    @property
    def has_begun(self) -> bool:
        """Whether somebody has said how far it is."""
        return _STATE in self.tags

    @property
    def is_counted(self) -> bool:
        return _COUNTED in self.tags

    @property
    def has_input(self) -> bool:
        return any(name.startswith(f"{_INPUT}/") for name in self.tags)

    @property
    def claims(self) -> int:
        """The number of the last claim, 0 where there is none."""
        return max((int(found[1]) for name in self.tags if (found := _CLAIM.fullmatch(name))), default=0)

    @property
    def life(self) -> tuple[str, str]:
        """Another one whenever somebody has done something for it."""
        return self.tags.get(_STATE, ""), self.tags.get(f"claim-{self.claims}.json", "")


class Records:
    """Every method raises StoreError where the store does not answer, and KeyError for a build that is not there."""

    def __init__(self, bucket: Bucket, check: Callable[[], Awaitable[None]] | None = None) -> None:
        """`check` raises StoreError where the store must not be written (`app.store.writer`)."""
        self._bucket, self._check = bucket, check
        self._read: dict[str, tuple[str, bytes]] = {}

    # -- looking -------------------------------------------------------------------------------------------------

    async def look(self) -> list[Seen]:
        """All builds, the oldest first; and uploads that are on their way, or ended there, which are not whole."""
        found: dict[str, list[Object]] = {}
        for one in await self._bucket.list(FOLDER):
            found.setdefault(one.key.split("/")[1], []).append(one)
        return [_seen(build, objects) for build, objects in sorted(found.items()) if is_build_id(build)]

    async def one(self, build: str) -> Seen:
        """One of them; ids come from clients."""
        seen = _seen(build, await self._bucket.list(f"{FOLDER}/{build}")) if is_build_id(build) else None
        if seen is None or not seen.is_whole:
            raise KeyError(build)
        return seen

    async def asked(self, seen: Seen) -> Asked:
        """What was asked; where that cannot be read, or is another's, nothing but the id: no model."""
        try:
            asked = Asked.model_validate_json(await self._object(seen, _REQUEST))
        except (ValidationError, StoreRefused):
            asked = unreadable(seen.id)
        return asked if asked.id == seen.id and is_model_name(asked.model) else unreadable(seen.id)

    async def note(self, seen: Seen) -> Note:
        """How far it is, or how it ended; what cannot be read cannot be continued."""
        name = _ENDED if seen.has_ended else _STATE
        if name not in seen.tags:
            return Note(progress=Progress())
        bad = Note(progress=Progress(state=BuildState.FAILED, error=f"its {name} cannot be read"))
        try:
            note = Note.model_validate_json(await self._object(seen, name))
        except (ValidationError, StoreRefused):
            return bad
        return note if note.progress.state.is_final == seen.has_ended else bad

    async def events(self, seen: Seen) -> list[Event]:
        """All events, in the order of the tries; the last one tells the end, once that is there."""
        tries = sorted((int(found[1]), name) for name in seen.tags if (found := _EVENTS.fullmatch(name)))
        told: list[Event] = []
        for _, name in tries:
            with contextlib.suppress(StoreRefused):
                for line in (await self._object(seen, name)).splitlines():
                    with contextlib.suppress(ValidationError):
                        told.append(Event.model_validate_json(line))
        if seen.has_ended:
            told = [event for event in told if not event.state.is_final]
            progress = (await self.note(seen)).progress
            shown = progress.model_dump(include={"state", "stage", "percent"})
            told.append(Event(time=progress.ended or "", message=progress.error or progress.state.value, **shown))
        return told

    async def _object(self, seen: Seen, name: str) -> bytes:
        """What has not changed since it was read is not read again."""
        key, tag = f"{FOLDER}/{seen.id}/{name}", seen.tags[name]
        known = self._read.get(key)
        if known is None or known[0] != tag:
            try:
                data = await self._bucket.read(key, _LARGEST_BYTES)
            except NotThere:  # removed since the listing
                raise KeyError(seen.id) from None
            known = tag, data
            self._remember(key, known)
        return known[1]

    def _remember(self, key: str, known: tuple[str, bytes]) -> None:
        """The oldest make room, those of removed builds among them."""
        self._read.pop(key, None)
        self._read[key] = known
        while sum(len(data) for _, data in self._read.values()) > _MOST_REMEMBERED_BYTES:
            del self._read[next(iter(self._read))]

    # -- changing ------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Raise StoreError where the store must not be written."""
        if self._check is not None:
            await self._check()

    async def add(self, asked: Asked, files: Mapping[str, Path], event: Event) -> None:
        """Store a build whole: it is there, for others, once all of it is."""
        await self.check()
        try:
            await publish(self._bucket, f"{FOLDER}/{asked.id}/{_INPUT}", files)
            await self.write_events(asked.id, 0, [event])
            await self._create(f"{FOLDER}/{asked.id}/{_REQUEST}", asked.model_dump_json(indent=2).encode())
        except BaseException:
            with contextlib.suppress(StoreError):
                await asyncio.shield(self.remove(asked.id))
            raise

    async def fetch_input(self, build: str, folder: Path) -> None:
        """Download what was sent into an empty folder, checked. OSError where there is no room for it."""
        place = f"{FOLDER}/{build}/{_INPUT}"
        await fetch(self._bucket, place, await read(self._bucket, place), folder)

    async def claim(self, build: str, number: int, by: str) -> bool:
        """Take a build to carry it out; False where another has taken this try."""
        key, data = f"{FOLDER}/{build}/claim-{number}.json", Claim(by=by).model_dump_json().encode()
        return await self._create(key, data)

    async def claimed_by(self, seen: Seen) -> str:
        """Who made the last claim."""
        try:
            return Claim.model_validate_json(await self._object(seen, f"claim-{seen.claims}.json")).by
        except (ValidationError, StoreRefused):
            return ""

    async def holds(self, build: str, number: int) -> bool:
        """Whether this try is still the last, and the build has not ended."""
        seen = await self.one(build)
        return seen.claims == number and not seen.has_ended

    async def write_note(self, build: str, note: Note) -> None:
        await self._bucket.write(f"{FOLDER}/{build}/{_STATE}", note.model_dump_json().encode())

    async def write_events(self, build: str, number: int, events: Iterable[Event]) -> None:
        data = "".join(event.model_dump_json() + "\n" for event in events).encode()
        await self._bucket.write(f"{FOLDER}/{build}/events-{number}.jsonl", data)

    async def end(self, build: str, note: Note) -> bool:
        """Say how a build ended; False where another had said so. What was sent is not needed any more."""
        is_first = await self._create(f"{FOLDER}/{build}/{_ENDED}", note.model_dump_json().encode())
        with contextlib.suppress(StoreError):  # a later look does it
            await self.drop_input(build)
        return is_first

    async def _create(self, key: str, data: bytes) -> bool:
        """Whether what is there is ours: the store's answer to an earlier try may have been lost."""
        try:
            await self._bucket.create(key, data)
        except AlreadyThere:
            return await self._bucket.read(key, _LARGEST_BYTES) == data
        return True

    async def count(self, build: str) -> bool:
        """Whether the caller is the one that counts this build's end."""
        try:
            await self._bucket.create(f"{FOLDER}/{build}/{_COUNTED}", b"1")
        except AlreadyThere:
            return False
        return True

    async def drop_input(self, build: str) -> None:
        found = await self._bucket.list(f"{FOLDER}/{build}/{_INPUT}")
        await self._bucket.remove([one.key for one in found])

    async def remove(self, build: str) -> None:
        """Forget a build: first what says that there is one."""
        await self._bucket.remove([f"{FOLDER}/{build}/{_REQUEST}"])
        await self._bucket.remove([one.key for one in await self._bucket.list(f"{FOLDER}/{build}")])


def _seen(build: str, objects: Iterable[Object]) -> Seen:
    below = len(f"{FOLDER}/{build}/")
    found = list(objects)
    tags = {one.key[below:]: one.tag for one in found}
    changed_s = max((one.changed_s for one in found), default=0.0)
    return Seen(build, tags, sum(one.size_bytes for one in found), changed_s)
