"""Whether this server has what a build has published: until then it tells that it is being loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from app.builds.state import Asked, BuildState, Progress
from app.models import ModelManager
from app.serving.registry import ModelState, Registry

__all__ = ["Arrivals"]

_WITHIN_S = 60.0
"""A version that has not come by then is not waited for: the model's state tells why."""


class _Serving(Protocol):
    async def serves(self, asked: Asked, version: int) -> bool: ...

    async def next_version(self, asked: Asked) -> int: ...


class Arrivals:
    """Of builds that other processes carry out, as clients of this one see them: who is told "succeeded" can ask."""

    def __init__(
        self, work: _Serving, manager: ModelManager, registry: Registry, nudge: Callable[[], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`nudge`: look at the store now."""
        self._work, self._manager, self._registry = work, manager, registry
        self._nudge, self._now_s = nudge, now_s
        self._active: set[str] = set()
        self._ended_s: dict[str, float] = {}

    def keep(self, active: Iterable[str], there: Collection[str]) -> None:
        """These have not ended, as the store says; and no others are there."""
        self._active = (self._active | set(active)) & set(there)
        self._ended_s = {build: s for build, s in self._ended_s.items() if build in there}

    async def serves(self, asked: Asked, version: int | None) -> bool:
        """Whether what the model answers with is this version, made of what was asked; or is about to be."""
        if version is None:
            return False
        comes = self._now_s() - self._ended_s.get(asked.id, -_WITHIN_S) < _WITHIN_S
        return comes or await self._work.serves(asked, version)

    async def require_wanted(self, asked: Asked) -> None:
        """Raise BadRepository where the model's configuration would not serve what is built; or StoreError."""
        version = await self._work.next_version(asked)
        await asyncio.to_thread(self._manager.require_wanted, asked.model, version)

    async def told(self, asked: Asked, progress: Progress) -> Progress:
        """The progress as it is told here."""
        if not progress.state.is_final:
            self._active.add(asked.id)
            return progress
        if progress.state is not BuildState.SUCCEEDED or progress.version is None or not self._waits(asked.id):
            self._active.discard(asked.id)
            return progress
        if await asyncio.to_thread(self._is_here, asked.model, progress.version):  # it reads the configuration
            self._active.discard(asked.id)
            self._ended_s.pop(asked.id, None)
            return progress
        return progress.model_copy(update={"state": BuildState.RUNNING, "stage": "load", "percent": 95, "ended": None})

    def _waits(self, build: str) -> bool:
        """Only for those that were seen on their way, and only for a while."""
        if build not in self._active:
            return False
        if build not in self._ended_s:
            self._ended_s[build] = self._now_s()
            self._nudge()
        if self._now_s() - self._ended_s[build] > _WITHIN_S:
            self._ended_s.pop(build)
            return False
        return True

    def _is_here(self, model: str, version: int) -> bool:
        """It answers, has failed to load, is not wanted, or a later one has taken over."""
        if not self._manager.choose(model, {version}):
            return True
        there = {found.number: found.state for found in self._registry.versions(model)}
        if there.get(version) in (ModelState.READY, ModelState.UNAVAILABLE):
            return True
        return any(number > version and state is ModelState.READY for number, state in there.items())
