"""Writing to a store, only where it keeps what is published from being written over."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from app.store.bucket import Bucket, Object
from app.store.errors import AlreadyThere, NotThere, StoreError, StoreRefused
from app.store.publications import publish, read, withdraw
from app.store.published import PUBLISHED, Published

__all__ = ["LEFT_S", "Writer", "leftovers"]

log = logging.getLogger(__name__)
LEFT_S = 86_400.0
"""A writer may be at work on what is younger."""
_PROBES = ".probe"
_ATTEMPT = re.compile(r"((?:[^/]+/[0-9]{1,18})|(?:\.plans/[0-9a-f]{32}))/([0-9a-f]{16})/[^/]+")


class Writer:
    """Publishes versions. `check` finds out whether the store honours "only where there is none" (If-None-Match)."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._is_proven, self._turn = False, asyncio.Lock()

    async def check(self) -> None:
        """Raise StoreError unless the store can be written, and lets one writer only make an object; asked once."""
        async with self._turn:
            if self._is_proven:
                return
            key = f"{_PROBES}/{secrets.token_hex(8)}"
            try:
                await self._bucket.create(key, b"1")
                try:
                    await self._bucket.create(key, b"2")
                except AlreadyThere:
                    self._is_proven = True
                    return
            finally:
                await self._forget(key)
            raise StoreError(
                f"{self._bucket.url} ignores conditional puts (If-None-Match: *): two writers could publish the same "
                "version, and it is not written; use a store that honours them"
            )

    async def _forget(self, key: str) -> None:
        try:
            await self._bucket.remove([key])
        except StoreError as error:
            log.warning("a probe is left in the store: %s", error)

    async def publish(self, model: str, version: int, files: Mapping[str, Path | bytes]) -> tuple[Published, str]:
        """Publish a version; what lies there now, and its tag. Raises VersionTaken, StoreError or ModelRefused."""
        await self.check()
        return await publish(self._bucket, f"{model}/{version}", files)

    async def find(self, model: str, version: int) -> Published | None:
        """What is published as a version, if anything is."""
        try:
            return await read(self._bucket, f"{model}/{version}")
        except NotThere:
            return None

    async def tag_of(self, model: str, version: int) -> str:
        """Of a version that is published; empty where it is not."""
        key = f"{model}/{version}/{PUBLISHED}"
        return next((one.tag for one in await self._bucket.list(f"{model}/{version}") if one.key == key), "")

    async def withdraw(self, model: str, version: int) -> None:
        """Take a version back."""
        await withdraw(self._bucket, f"{model}/{version}")

    async def next_version(self, model: str) -> int:
        """One more than the highest that was published or tried."""
        found = [one.key.split("/")[1] for one in await self._bucket.list(model)]
        return max((int(text) for text in found if text.isascii() and text.isdigit()), default=0) + 1

    async def sweep(self) -> int:
        """Remove what writers that were killed have left; how many objects."""
        objects = await self._bucket.list()
        counted: dict[str, str | None] = {}
        for place in (one.key.rpartition("/")[0] for one in objects if one.key.endswith(f"/{PUBLISHED}")):
            try:
                counted[place] = (await read(self._bucket, place)).attempt
            except (NotThere, StoreRefused):
                counted[place] = None
        newest_s = max((one.changed_s for one in objects), default=0.0)
        now_s = min(time.time(), newest_s)  # the store's clock, where ours is ahead
        gone = leftovers(objects, counted, now_s - LEFT_S)
        await self._bucket.remove(gone)
        return len(gone)


def leftovers(objects: Iterable[Object], counted: Mapping[str, str | None], before_s: float) -> list[str]:
    """Keys of attempts at places of ours that do not count, and of probes, unchanged since `before_s` (Unix time).

    `counted` has, by place, the attempt that does; None where nobody can tell: there, all stay.
    """
    by_attempt: dict[tuple[str, str], list[Object]] = {}
    gone = []
    for one in objects:
        attempt = _ATTEMPT.fullmatch(one.key)
        if attempt is not None:
            by_attempt.setdefault((attempt[1], attempt[2]), []).append(one)
        elif one.key.startswith(f"{_PROBES}/") and one.changed_s < before_s:
            gone.append(one.key)
    for (place, attempt_id), found in by_attempt.items():
        known = place not in counted or counted[place] is not None
        if known and counted.get(place) != attempt_id and all(one.changed_s < before_s for one in found):
            gone += [one.key for one in found]
    return gone
