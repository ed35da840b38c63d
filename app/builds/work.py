"""What a build does: compile in a child process, publish an immutable version, bring it into service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.builds.jobs import Tell
from app.builds.state import Advance, Asked, upload_key
from app.builds.store import INPUT
from app.builds.versions import Versions
from app.models import ModelManager
from app.plans import Plans
from app.serving.registry import ModelState, Registry
from engines import repository
from engines.errors import EngineError
from engines.repository import Manifest
from engines.request import BuildRequest

__all__ = ["ServerWork", "StoreWork"]


class ServerWork:
    """Satisfies `app.builds.jobs.Work` with the server's own plans, repository and manager."""

    def __init__(
        self, folder: Path, versions: Versions, plans: Plans, manager: ModelManager, registry: Registry
    ) -> None:
        """`folder` is where the models lie that are served, and `versions` puts what is published there, too."""
        self._repository, self._versions = folder, versions
        self._plans, self._manager, self._registry = plans, manager, registry

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        def advance(stage: str, share: float) -> None:
            tell(stage, "", share)

        await self._versions.check()  # now, and not after an hour's work
        version = await self.next_version(asked)
        await asyncio.to_thread(self._manager.require_wanted, asked.model, version)
        await self._make(BuildRequest.of_folder(folder / INPUT), tell, advance)

    async def _make(self, request: BuildRequest, tell: Tell, advance: Advance = lambda stage, share: None) -> Manifest:
        def note(line: str) -> None:
            tell("", line, 0.0)

        return await self._plans.make(request, note, advance, note)

    async def next_version(self, asked: Asked) -> int:
        """One more than the highest that there is."""
        return await self._versions.next_version(asked.model)

    async def serves(self, asked: Asked, version: int) -> bool:
        """It is the newest that is ready and that there is, its files are there, and they are those that were sent."""
        final = self._repository / asked.model / str(version)
        ready = [found.number for found in self._registry.versions(asked.model) if found.state is ModelState.READY]
        if max(ready, default=0) != version or self._manager.version_folder(asked.model, version) != final:
            return False  # the last is so, too, where a load call brought other files under this number
        return await asyncio.to_thread(self._holds, final, asked)

    def _holds(self, final: Path, asked: Asked) -> bool:
        try:
            is_newest = repository.next_version(self._repository, asked.model) == int(final.name) + 1
            return is_newest and upload_key(asked.model, BuildRequest.of_folder(final).digests()) == asked.key
        except (EngineError, OSError):
            return False

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        tell("publish", f"version {version}", 0.0)
        final, request = self._repository / asked.model / str(version), BuildRequest.of_folder(folder / INPUT)
        if not final.exists():
            manifest = await self._make(request, tell)
            await self._versions.publish(asked.model, version, request.files(), repository.encode(manifest))
        elif not await asyncio.to_thread(_is_same, BuildRequest.of_folder(final), request):
            raise EngineError(f"version {version} of {asked.model!r} has appeared meanwhile, with another model")
        tell("load", "", 0.0)
        try:
            await self._manager.take_in(asked.model, version)
        except EngineError:  # what cannot serve must not be there at the next start either
            await self._versions.withdraw(asked.model, version)
            raise

    async def withdraw(self, asked: Asked, version: int) -> None:
        await self._versions.withdraw(asked.model, version)


class StoreWork:
    """What a process does that serves nothing: compile, and publish where servers find it."""

    def __init__(self, versions: Versions, plans: Plans) -> None:
        self._versions, self._plans = versions, plans

    async def compile(self, asked: Asked, folder: Path, tell: Tell) -> None:
        await self._versions.check()
        await self._make(BuildRequest.of_folder(folder / INPUT), tell)
        await self._plans.wait_shared()  # before there is a version: else every server compiles it as well

    async def _make(self, request: BuildRequest, tell: Tell) -> Manifest:
        def note(line: str) -> None:
            tell("", line, 0.0)

        return await self._plans.make(request, note, lambda stage, share: tell(stage, "", share), note)

    async def next_version(self, asked: Asked) -> int:
        return await self._versions.next_version(asked.model)

    async def publish(self, asked: Asked, folder: Path, version: int, tell: Tell) -> None:
        tell("publish", f"version {version}", 0.0)
        request = BuildRequest.of_folder(folder / INPUT)
        manifest = await self._make(request, tell)
        await self._versions.publish(asked.model, version, request.files(), repository.encode(manifest))

    async def withdraw(self, asked: Asked, version: int) -> None:
        await self._versions.withdraw(asked.model, version)


def _is_same(one: BuildRequest, other: BuildRequest) -> bool:
    return one.digests() == other.digests()
