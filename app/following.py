"""A server whose models come from a store: what it follows, what it publishes, and how its models are told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from app.builds.lock import BuildsLock
from app.models import ModelManager
from app.serving.registry import ModelState, Registry, Version
from app.settings import Settings
from app.store.errors import StoreError
from app.store.mirror import Choose, Mirror
from app.store.opened import open_store
from app.tasks import Tasks
from app.words import printable
from engines.errors import BadRepository
from engines.repository import sweep_versions

__all__ = ["Following"]

log = logging.getLogger(__name__)
_FIRST_LOOK_S = 10.0
"""A server begins without its store once this is over: with what its mirror has."""
_SWEEP_EVERY_S = 3600.0


class Following:
    """Satisfies `app.store.mirror.Follower` with the server's own models. Runs on the event loop."""

    def __init__(self, settings: Settings, manager: ModelManager, registry: Registry) -> None:
        assert settings.store is not None
        self._settings, self._manager, self._registry = settings, manager, registry
        self.store = opened = open_store(settings.store, settings.models_folder, settings.own_plan_key)
        self.versions, self._writer = opened.versions, opened.writer
        self._mirror = Mirror(opened.bucket, settings.models_folder, settings.max_mirror_bytes, self)
        self._mirror.published_here = self.versions.here
        self._tasks = Tasks()
        manager.bring, manager.plans.shared = self.bring, opened.plans

    async def start(self) -> None:
        """Look once before the server answers, so that its index has what there is; then follow."""
        self._settings.models_folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._sweep_mirror)
        if not any(self._settings.models_folder.glob("*/*/model.onnx")):  # else it serves what it had
            self._registry.awaits = "its store was not reached yet"
        try:
            await asyncio.wait_for(self._mirror.look(), _FIRST_LOOK_S)
        except (StoreError, OSError) as error:  # TimeoutError is one
            log.warning("the store does not answer, what the mirror has is served: %s", error or "no answer in time")
        except Exception:
            log.exception("the store could not be looked at, what the mirror has is served")
        self._tasks.spawn(self._mirror.watch(self._settings.watch_s))
        self._tasks.spawn(self._keep())

    def _sweep_mirror(self) -> None:
        """Downloads that a killed server has left take room that nobody counts; those of one that lives stay."""
        lock = BuildsLock(self._settings.builds_folder)
        if lock.take():
            sweep_versions(self._settings.models_folder, 0.0, time.time())
            lock.release()

    async def stop(self) -> None:
        """End downloads, and follow no more."""
        self._tasks.cancel_all()
        await self._tasks.wait()
        await self._mirror.stop()

    def nudge(self) -> None:
        """Look at the store now: something was published that others wait for."""
        self._tasks.spawn(self._look_once())

    async def _look_once(self) -> None:
        try:
            await self._mirror.look()
        except Exception as error:
            log.warning("the store was not looked at: %s", error)

    async def _keep(self) -> None:
        """Find out at once whether builds can be published, and say so; remove what killed writers have left."""
        while True:
            try:
                await self._writer.check()
            except StoreError as error:
                log.warning("the store is only read, builds cannot be published: %s", error)
            else:
                await self._sweep()
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def _sweep(self) -> None:
        try:
            removed = await self._writer.sweep()
            if removed:
                log.info("%d objects that killed writers had left are removed from the store", removed)
        except Exception as error:
            log.warning("what killed writers have left in the store stays for now: %s", error)

    @contextlib.asynccontextmanager
    async def bring(self, model: str, choose: Choose) -> AsyncIterator[None]:
        """Around a load: have here what it needs. Without the store, what is here has to do."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._mirror.bring(model, choose))
            except (StoreError, OSError) as error:
                said = str(error) if isinstance(error, StoreError) else error.strerror
                if not (self._settings.models_folder / model).is_dir():
                    raise BadRepository(f"failed to load '{model}': {printable(str(said))}") from error
                log.warning("the store was not asked for %s, it is loaded as it is here: %s", model, said)
            yield

    # -- Follower ------------------------------------------------------------------------------------------------

    def choose(self, model: str, numbers: set[int]) -> set[int]:
        return self._manager.choose(model, numbers)

    def needs(self, model: str, number: int) -> bool:
        found = self._registry.get(model, number)
        return found is not None and found.endpoint is not None

    def note(self, model: str, number: int, reason: str, *, failed: bool = False) -> None:
        found = self._registry.get(model, number)
        if found is None or found.endpoint is None:
            state = ModelState.UNAVAILABLE if failed else ModelState.LOADING
            self._registry.set(Version(model, number, state, printable(reason)))

    def forget(self, model: str, number: int) -> None:
        found = self._registry.get(model, number)
        if found is not None and found.endpoint is None:
            self._registry.drop(model, number)

    def reached(self) -> None:
        self._registry.awaits = ""

    async def look(self) -> None:
        await self._manager.look()
