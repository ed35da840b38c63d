"""Builds publish in the store first, which decides who was first; then in the mirror, without a download."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from app.builds.versions import LocalVersions
from app.store.errors import VersionTaken
from app.store.local import write_note
from app.store.published import Published
from app.store.writer import Writer
from engines.repository import MANIFEST_FILE, file_sha256

__all__ = ["StoreVersions"]


class StoreVersions:
    """Satisfies `app.builds.versions.Versions`."""

    def __init__(self, writer: Writer, mirror: Path) -> None:
        self._writer, self._local, self._mirror = writer, LocalVersions(mirror), mirror

    async def check(self) -> None:
        await self._writer.check()

    async def next_version(self, model: str) -> int:
        return max(await self._writer.next_version(model), await self._local.next_version(model))

    async def publish(self, model: str, version: int, files: Mapping[str, Path], manifest: bytes) -> None:
        """A try that was cut off after the store had it all is gone on with; another's version raises VersionTaken."""
        try:
            published, tag = await self._writer.publish(model, version, {**files, MANIFEST_FILE: manifest})
        except VersionTaken:
            there = await self._writer.find(model, version)
            if there is None or not await asyncio.to_thread(_is_same, there, files):
                raise
            published, tag = there, await self._writer.tag_of(model, version)
        await self._local.publish(model, version, files, manifest)
        await asyncio.to_thread(write_note, self._mirror / model / str(version), tag, published.size_bytes)

    async def withdraw(self, model: str, version: int) -> None:
        await self._writer.withdraw(model, version)
        await self._local.withdraw(model, version)


def _is_same(there: Published, files: Mapping[str, Path]) -> bool:
    """Whether it was made from the same files; the manifest may differ by when it was made."""
    known = {name: file.sha256 for name, file in there.files.items() if name != MANIFEST_FILE}
    return known == {name: file_sha256(path) for name, path in files.items()}
