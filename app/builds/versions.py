"""Where builds publish: a folder, or (`app.store.versions`) a store that servers have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from app.disk import naming_full_disk
from engines import repository

__all__ = ["LocalVersions", "Versions"]


class Versions(Protocol):
    """Immutable versions of models; what is published is in the folder of this server afterwards."""

    async def check(self) -> None:
        """Raise EngineError where nothing can be published."""
        ...

    async def next_version(self, model: str) -> int:
        """One more than the highest that there is."""
        ...

    async def publish(self, model: str, version: int, files: Mapping[str, Path], manifest: bytes) -> None:
        """Add a version, all or none of it. Raises EngineError where there is one of this number."""
        ...

    async def withdraw(self, model: str, version: int) -> None:
        """Take back a version that cannot serve."""
        ...


class LocalVersions:
    """In a folder of this machine alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def check(self) -> None:
        """Whether it can be written is seen when it is."""

    async def next_version(self, model: str) -> int:
        return await asyncio.to_thread(repository.next_version, self.folder, model)

    async def publish(self, model: str, version: int, files: Mapping[str, Path], manifest: bytes) -> None:
        with naming_full_disk("the repository"):
            await asyncio.to_thread(repository.publish_version, self.folder, model, version, files, manifest)

    async def withdraw(self, model: str, version: int) -> None:
        await asyncio.to_thread(repository.withdraw_version, self.folder, model, version)
