"""What a build does: compile in a child process, publish an immutable version, bring it into service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.builds.jobs import Tell
from app.builds.state import Asked
from app.builds.store import MODEL
from app.models import ModelManager
from app.plans import Plans
from engines import repository
from engines.errors import EngineError

__all__ = ["ServerWork"]


class ServerWork:
    """Satisfies `app.builds.jobs.Work` with the server's own plans, repository and manager."""

    def __init__(self, folder: Path, plans: Plans, manager: ModelManager) -> None:
        self._repository, self._plans, self._manager = folder, plans, manager

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        def stage(name: str) -> None:
            tell(name, "")

        await self._plans.make(folder / MODEL, lambda reason: tell("", reason), stage)

    async def next_version(self, asked: Asked) -> int:
        """One more than the highest on disk."""
        return await asyncio.to_thread(repository.next_version, self._repository, asked.model)

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        tell("publish", f"version {version}")
        final = self._repository / asked.model / str(version)
        if not final.exists():
            manifest = await self._plans.make(folder / MODEL, lambda reason: tell("", reason))
            await asyncio.to_thread(
                repository.publish_version, self._repository, asked.model, version, folder / MODEL,
                repository.encode(manifest),
            )  # fmt: skip
        elif await asyncio.to_thread(repository.file_sha256, final / repository.MODEL_FILE) != asked.sha256:
            raise EngineError(f"version {version} of {asked.model!r} has appeared meanwhile, with another model")
        tell("load", "")
        try:
            await self._manager.take_in(asked.model, version)
        except EngineError:  # what cannot serve must not be there at the next start either
            await asyncio.to_thread(repository.withdraw_version, self._repository, asked.model, version)
            raise
