"""Builds publish in the store first, which decides who was first; then in the mirror, without a download."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from app.builds.versions import LocalVersions
from app.store.errors import VersionTaken
from app.store.local import copy_version
from app.store.published import Published
from app.store.writer import Writer
from engines.repository import MANIFEST_FILE, file_sha256

__all__ = ["StoreVersions"]

log = logging.getLogger(__name__)


class StoreVersions:
    """Satisfies `app.builds.versions.Versions`. `here` has the versions that are being published, for the mirror."""

    def __init__(self, writer: Writer, mirror: Path) -> None:
        self._writer, self._local, self._mirror = writer, LocalVersions(mirror), mirror
        self._own: dict[tuple[str, int], str] = {}
        self.here: set[tuple[str, int]] = set()

    async def check(self) -> None:
        await self._writer.check()

    async def next_version(self, model: str) -> int:
        return max(await self._writer.next_version(model), await self._local.next_version(model))

    async def publish(self, model: str, version: int, files: Mapping[str, Path], manifest: bytes) -> None:
        """A version that is there and was made from the same files is as good as this one: it may be this one, of a try
        that was cut off. That of others raises VersionTaken.
        """
        self.here.add((model, version))
        try:
            published, tag = await self._published(model, version, files, manifest)
            try:
                await asyncio.to_thread(
                    copy_version, self._mirror, model, version, files, manifest, tag, published.size_bytes
                )
            except OSError as error:  # it is published, and comes as what others publish does, once there is room
                log.warning("%s/%d is not in the mirror yet: %s", model, version, error.strerror)
        finally:
            self.here.discard((model, version))

    async def _published(
        self, model: str, version: int, files: Mapping[str, Path], manifest: bytes
    ) -> tuple[Published, str]:
        try:
            published, tag = await self._writer.publish(model, version, {**files, MANIFEST_FILE: manifest})
        except VersionTaken:
            there = await self._writer.find(model, version)
            if there is None or not await asyncio.to_thread(_is_same, there, files):
                raise
            return there, await self._writer.tag_of(model, version)
        self._own[model, version] = published.attempt
        return published, tag

    async def withdraw(self, model: str, version: int) -> None:
        """From the store only what this process has put there: it may serve elsewhere, where it is another's."""
        own, there = self._own.pop((model, version), None), await self._writer.find(model, version)
        if own is not None and there is not None and there.attempt == own:
            await self._writer.withdraw(model, version)
        await self._local.withdraw(model, version)


def _is_same(there: Published, files: Mapping[str, Path]) -> bool:
    """Whether it was made from the same files; the manifest may differ by when it was made."""
    known = {name: file.sha256 for name, file in there.files.items() if name != MANIFEST_FILE}
    return known == {name: file_sha256(path) for name, path in files.items()}
