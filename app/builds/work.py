"""What a build does: compile in a child process, publish an immutable version, bring it into service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.builds.jobs import Tell
from app.builds.state import Asked
from app.builds.store import INPUT
from app.models import ModelManager
from app.plans import Plans
from engines import repository
from engines.errors import EngineError
from engines.request import BuildRequest

__all__ = ["ServerWork"]


class ServerWork:
    """Satisfies `app.builds.jobs.Work` with the server's own plans, repository and manager."""

    def __init__(self, folder: Path, plans: Plans, manager: ModelManager) -> None:
        self._repository, self._plans, self._manager = folder, plans, manager

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        def stage(name: str) -> None:
            tell(name, "")

        await self._plans.make(BuildRequest.of_folder(folder / INPUT), lambda reason: tell("", reason), stage)

    async def next_version(self, asked: Asked) -> int:
        """One more than the highest on disk."""
        return await asyncio.to_thread(repository.next_version, self._repository, asked.model)

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        tell("publish", f"version {version}")
        final, request = self._repository / asked.model / str(version), BuildRequest.of_folder(folder / INPUT)
        if not final.exists():
            manifest = await self._plans.make(request, lambda reason: tell("", reason))
            await asyncio.to_thread(
                repository.publish_version, self._repository, asked.model, version, request.files(),
                repository.encode(manifest),
            )  # fmt: skip
        elif not await asyncio.to_thread(_is_same, BuildRequest.of_folder(final), request):
            raise EngineError(f"version {version} of {asked.model!r} has appeared meanwhile, with another model")
        tell("load", "")
        try:
            await self._manager.take_in(asked.model, version)
        except EngineError:  # what cannot serve must not be there at the next start either
            await asyncio.to_thread(repository.withdraw_version, self._repository, asked.model, version)
            raise


def _is_same(one: BuildRequest, other: BuildRequest) -> bool:
    return one.digests() == other.digests()
