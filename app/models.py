"""Bring models from disk into service and out again: look, load, swap, unload. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.config import ModelConfig
from app.loading import Loaded, Loader
from app.overrides import NOTHING, Calls, Override, Overrides, Seen, Signature, stamp_of
from app.serving.endpoint import Endpoint
from app.serving.errors import Stopping, UnknownModel
from app.serving.gateway import Gateway
from app.serving.registry import ModelState, Version
from app.settings import Settings
from app.tasks import Tasks
from engines import repository
from engines.errors import BadRepository
from engines.repository import VersionFiles

__all__ = ["ModelManager"]

log = logging.getLogger(__name__)
_SECOND_LOOK_S = 0.3
_REPLACED = "another version is served"
_SETTLING = "waiting for its files to settle"
_GONE = "its files are gone"
_UNLOADED = "it was unloaded meanwhile"
Prepared = Coroutine[Any, Any, Loaded | str]
Bring = Callable[[str, Callable[[str, set[int]], set[int]]], AbstractAsyncContextManager[None]]


class ModelManager:
    """Runs on the event loop; disk and imports happen in threads, compiles in child processes."""

    def __init__(self, settings: Settings, gateway: Gateway) -> None:
        self._settings, self._gateway, self._registry = settings, gateway, gateway.registry
        self._loader = Loader(settings, gateway)
        self.plans = self._loader.plans
        self._seen: dict[str, dict[int, Seen]] = {}
        self._unloaded: set[str] = set()
        self._leaving: set[tuple[str, int]] = set()
        self._overrides, self._calls = Overrides(), Calls()
        self._tasks = Tasks()
        self._stopping = False
        self.bring: Bring = lambda model, choose: nullcontext()
        """Around a load: makes what it needs be in the folder, where that follows a store."""

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look once before the server answers, so that its index is complete; then watch."""
        await self.plans.sweep()
        await self.look()
        self._tasks.spawn(self._watch())

    def begin_stop(self) -> None:
        """Load nothing more: loads under way are ended, their callers get Stopping. What is served stays."""
        self._stopping = True
        self._tasks.cancel_all()

    async def stop(self) -> None:
        """Cancel loads and the watch; a compile under way is ended."""
        self.begin_stop()
        await self._tasks.wait()
        await self._loader.close()
        self._overrides.close()
        self.plans.close()

    async def _watch(self) -> None:
        """The second look comes soon, so that a first start is quick; then one every `watch_s`."""
        pause_s = _SECOND_LOOK_S
        while pause_s:
            await asyncio.sleep(pause_s)
            try:
                await self.look()
            except Exception:
                log.exception("the repository could not be looked at")
            pause_s = self._settings.watch_s

    # -- looking -------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Compare the disk with what is served; start loads, unload what is gone."""
        async with self._calls.noting() as touched:
            found = await asyncio.to_thread(self._scan)
            found.update({model: [] for model in self._seen if model not in found})
            for model, versions in found.items():
                if model in touched:
                    continue  # a call has changed it since the scan, or will
                if not versions:
                    self._unloaded.discard(model)
                self._forget_missing(model, {files.version for files in versions})
                if model not in self._unloaded:
                    self._look_at(model, versions)

    def _scan(self) -> dict[str, list[VersionFiles]]:
        """Versions on disk; those that a load call brought stand in for the repository's."""
        return {**repository.scan(self._settings.models_folder), **self._overrides.scan()}

    def _forget_missing(self, model: str, present: set[int]) -> None:
        seen = self._seen.setdefault(model, {})
        for number in [number for number in seen if number not in present]:
            del seen[number]
            self._loader.forget(model, number)
            self._tasks.cancel((model, number))
            self._leaving.add((model, number))
        self._retire_gone(model, present)
        if not seen:
            self._seen.pop(model)
            self._discard(self._overrides.put(model, Override()))

    def _retire_gone(self, model: str, present: set[int]) -> None:
        """Versions without files go at once, but where another one of those `present` is about to take over."""
        found = [self._registry.get(model, number) for number in self.choose(model, present)]
        if not found or any(version is not None and version.state is not ModelState.LOADING for version in found):
            for number in [number for name, number in self._leaving if name == model]:
                self._leaving.discard((model, number))
                self._retire(model, number, _GONE)

    def _look_at(self, model: str, versions: list[VersionFiles]) -> None:
        config_stamp = stamp_of(self._config_file(model))
        known = self._seen.setdefault(model, {}) if versions else {}
        for files in versions:
            known.setdefault(files.version, Seen(NOTHING))
            self._leaving.discard((model, files.version))
        for files in versions:
            signature = (files.stamp, config_stamp)
            seen = known[files.version]
            twice, is_new = seen.last == signature, seen.last == NOTHING
            seen.last = signature
            if files.version not in self._wanted(model):
                seen.handled = None
            elif (twice or is_new) and seen.handled != signature and not self._tasks.get((model, files.version)):
                self._take(files, seen, settled=twice or files.has_manifest)
        self._retire_replaced(model)

    def _take(self, files: VersionFiles, seen: Seen, *, settled: bool) -> None:
        """Load a version that is whole: seen alike twice, published with a manifest, or compiled before."""
        if self._registry.get(files.model, files.version) is None:
            self._registry.set(Version(files.model, files.version, ModelState.LOADING, _SETTLING))
        if settled:
            seen.handled = seen.last
        self._tasks.start((files.model, files.version), self._load(files, seen.last, only_known=not settled))

    def _config_file(self, model: str) -> Path:
        return self._settings.models_folder / model / repository.CONFIG_FILE

    def _wanted(self, model: str) -> set[int]:
        """Version numbers that the policy in force serves."""
        return self.choose(model, set(self._seen.get(model, {})))

    def choose(self, model: str, numbers: set[int]) -> set[int]:
        """Which of these versions the policy in force serves, none of an unloaded model; from any thread."""
        return (
            set() if model in self._unloaded else self._overrides.get(model).choose(self._config_file(model), numbers)
        )

    # -- loading -------------------------------------------------------------------------------------------------

    async def _load(self, files: VersionFiles, sight: Signature, *, only_known: bool) -> None:
        """Load what was found on disk. `sight` is what was seen of the files when that was decided."""
        outcome = await self._prepare(files, self._overrides.get(files.model), only_known=only_known)
        if isinstance(outcome, Loaded):
            self._swap_in(outcome, sight)
        elif outcome:
            self._fail(files, outcome)

    def _prepare(self, files: VersionFiles, override: Override, *, only_known: bool = False) -> Prepared:
        return self._loader.prepare(files, override, self._sayer(files), only_known=only_known)

    def _swap_in(self, loaded: Loaded, sight: Signature) -> None:
        """From here on new requests meet the new engine; the old one answers what it accepted."""
        endpoint, reason, renewal = loaded
        model, number = endpoint.model, endpoint.version
        if model in self._unloaded or number not in self._seen.get(model, {}):
            self._stop(endpoint, lambda: None)  # unloaded or removed while it was loading
            return
        old = self._registry.get(model, number)
        self._registry.set(Version(model, number, ModelState.READY, reason, endpoint))
        self._seen[model][number].handled = sight  # not what was seen since: that is loaded next
        log.info("%s/%d is ready", model, number, extra={"note": reason} if reason else None)
        if old is not None and old.endpoint is not None and old.state is ModelState.READY:
            self._stop(old.endpoint, lambda: None)
        self._retire_replaced(model)
        if renewal is not None:
            self._tasks.start((model, number), self._renew(endpoint, renewal, sight))

    async def _renew(self, endpoint: Endpoint, renewal: Callable[[], Prepared], sight: Signature) -> None:
        """What serves goes on serving until its plans are as they should be, and also where they will not be."""
        outcome = await renewal()
        current = self._registry.get(endpoint.model, endpoint.version)
        if isinstance(outcome, Loaded):
            self._swap_in(outcome, sight)
        elif current is not None and current.endpoint is endpoint:
            current.reason = f"{current.reason}; building it again failed: {outcome}"

    def _fail(self, files: VersionFiles, reason: str) -> None:
        log.warning("%s/%d is unavailable: %s", files.model, files.version, reason)
        current = self._registry.get(files.model, files.version)
        if current is not None and current.state is ModelState.READY:
            current.reason = f"the version loaded before still serves; loading it anew failed: {reason}"
        else:
            self._registry.set(Version(files.model, files.version, ModelState.UNAVAILABLE, reason))

    def _sayer(self, files: VersionFiles) -> Callable[[str], None]:
        def say(reason: str) -> None:
            current = self._registry.get(files.model, files.version)
            if current is not None and current.state is ModelState.LOADING:
                current.reason = reason

        return say

    # -- leaving -------------------------------------------------------------------------------------------------

    def _retire_replaced(self, model: str) -> None:
        """Versions that the policy no longer wants go once one that it wants serves, not earlier."""
        wanted = self._wanted(model)
        versions = self._registry.versions(model)
        if any(version.number in wanted and version.state is ModelState.READY for version in versions):
            for version in versions:
                if version.number not in wanted and version.number in self._seen.get(model, {}):
                    self._retire(model, version.number, _REPLACED)
        self._retire_gone(model, set(self._seen.get(model, {})))

    def _retire(self, model: str, number: int, reason: str, *, keep_listed: bool = False) -> None:
        """Stop a version; the requests it accepted are answered first."""
        version = self._registry.get(model, number)
        if version is None or version.state is ModelState.UNLOADING:
            return

        def gone() -> None:
            if self._registry.get(model, number) is not version:
                return  # loaded anew while it drained
            if keep_listed and number in self._seen.get(model, {}):  # its files are still there
                self._registry.set(Version(model, number, ModelState.UNAVAILABLE, reason))
            else:
                self._registry.drop(model, number)

        if version.endpoint is None:
            gone()
        else:
            self._registry.unload(version, reason)
            self._stop(version.endpoint, gone)

    def _stop(self, endpoint: Endpoint, then: Callable[[], None]) -> None:
        def stopped() -> None:
            self._loader.release(endpoint)
            then()

        self._gateway.retire(endpoint, stopped)

    def version_folder(self, model: str, number: int) -> Path | None:
        """Where the files of a version lie; None where there is no such version."""
        if not repository.is_model_name(model):
            return None
        folder = (self._overrides.get(model).folder or self._settings.models_folder) / model / str(number)
        return folder if (folder / repository.MODEL_FILE).is_file() else None

    # -- the repository API --------------------------------------------------------------------------------------

    async def load(
        self, model: str, config: ModelConfig | None = None, brought: Mapping[int, bytes] = MappingProxyType({})
    ) -> None:
        """Load (or reload) a model now; returns when it serves. Raises BadRepository with the reason, or Stopping.

        `config` stands in for the file, and `brought` (model files by version) for the repository's versions, until
        the next load. A load that fails changes nothing of what is served or was brought before.
        """
        repository.check_model_name(model)
        if brought:
            self._overrides.open()
        override = await asyncio.to_thread(self._overrides.stage, model, config, brought)
        call = self._tasks.spawn(self._load_call(model, override))
        call.add_done_callback(lambda _: self._discard(override))
        await self._outcome(call, model)

    def require_wanted(self, model: str, number: int) -> None:
        """Raise BadRepository where `take_in` of the next version, `number`, would: it need not be compiled then."""
        self._overrides.get(model).require(model, self._config_file(model), number, {number})

    async def take_in(self, model: str, number: int) -> None:
        """Bring a version that was published just now into service; returns when it answers.

        Raises BadRepository with the reason, or Stopping; then what was served before still is.
        """
        await self._outcome(self._tasks.spawn(self._take_in_call(model, number)), model)

    async def _outcome(self, call: asyncio.Task[None], model: str) -> None:
        """Wait for a call in a task of its own, which `begin_stop` ends and not the caller; raise what it raised."""
        if self._stopping:
            call.cancel()
        await asyncio.wait({call})
        if call.cancelled():
            raise Stopping(f"Server is stopping, '{model}' is not loaded")
        call.result()

    async def _take_in_call(self, model: str, number: int) -> None:
        async with self._calls.turn(model):
            override = self._overrides.get(model)
            found = (await asyncio.to_thread(repository.scan, self._settings.models_folder)).get(model, [])
            override.require(model, self._config_file(model), number, {files.version for files in found})
            files = next(files for files in found if files.version == number)
            sight = (files.stamp, stamp_of(self._config_file(model)))
            outcome = (await self._prepare_all([files], override))[0][1]
            if isinstance(outcome, str):
                raise BadRepository(f"version {number} cannot be loaded: {outcome}")
            self._unloaded.discard(model)
            self._seen.setdefault(model, {})[number] = Seen(sight)
            self._swap_in(outcome, sight)

    async def _load_call(self, model: str, override: Override) -> None:
        config = self._config_file(model)
        elsewhere = override.folder is not None
        here = nullcontext() if elsewhere else self.bring(model, lambda _, numbers: override.choose(config, numbers))
        async with self._calls.turn(model), here:
            found = await asyncio.to_thread(repository.scan, override.folder or self._settings.models_folder)
            sights = {files.version: Seen((files.stamp, stamp_of(config))) for files in found.get(model, ())}
            if not sights:
                raise BadRepository(f"failed to load '{model}', failed to poll from model repository: no such model")
            wanted = override.choose(config, set(sights))
            if not wanted:
                raise BadRepository(f"failed to load '{model}': it has no version that its configuration asks for")
            for number in wanted:
                sights[number].handled = sights[number].last
            outcomes = await self._prepare_all([files for files in found[model] if files.version in wanted], override)
            self._settle(model, override, sights, outcomes)

    async def _prepare_all(
        self, wanted: list[VersionFiles], override: Override
    ) -> list[tuple[VersionFiles, Loaded | str]]:
        """Wait for loads under way, then prepare all at once; meanwhile what does not serve is listed as loading."""
        if running := [task for f in wanted if (task := self._tasks.get((f.model, f.version))) is not None]:
            await asyncio.wait(running)
            if any(task.cancelled() for task in running):
                return [(files, _UNLOADED) for files in wanted]
        before = {f.version: self._registry.get(f.model, f.version) for f in wanted}
        absent = [f for f in wanted if (known := before[f.version]) is None or known.endpoint is None]
        marks = [Version(f.model, f.version, ModelState.LOADING, "loading") for f in absent]
        for mark in marks:
            self._registry.set(mark)
        tasks = [self._tasks.start((files.model, files.version), self._prepare(files, override)) for files in wanted]
        try:
            await asyncio.wait(tasks)
        finally:
            for mark in [m for m in marks if self._registry.get(m.model, m.number) is m]:
                self._registry.drop(mark.model, mark.number)
                if (known := before[mark.number]) is not None:
                    self._registry.set(known)
        outcomes = [_UNLOADED if task.cancelled() else task.result() for task in tasks]
        return list(zip(wanted, outcomes, strict=True))

    def _settle(
        self, model: str, override: Override, sights: dict[int, Seen], done: list[tuple[VersionFiles, Loaded | str]]
    ) -> None:
        """All or nothing, in one step of the event loop. Raises BadRepository where it is nothing."""
        loaded = [outcome for _, outcome in done if isinstance(outcome, Loaded)]
        failed = [(files, outcome) for files, outcome in done if isinstance(outcome, str)]
        if failed:
            for one in loaded:
                self._stop(one.endpoint, lambda: None)
            if override == Override() and self._overrides.get(model).folder is None:  # the watcher would fail alike
                self._seen.setdefault(model, {}).update(sights)
                for files, why in failed:
                    if why is not _UNLOADED:
                        self._fail(files, why)
            files, why = failed[0]
            raise BadRepository(f"failed to load '{model}', version {files.version}: {why}")
        self._unloaded.discard(model)
        self._discard(self._overrides.put(model, override))
        self._seen[model] = sights
        for one in loaded:
            self._swap_in(one, sights[one.endpoint.version].last)
        for version in self._registry.versions(model):
            if version.number not in sights:
                self._tasks.cancel((model, version.number))
                self._retire(model, version.number, _GONE)

    def _discard(self, override: Override) -> None:
        if override.folder is not None:
            self._tasks.spawn(asyncio.to_thread(self._overrides.discard, override))

    def unload(self, model: str) -> None:
        """Stop all versions of a model; returns at once. Raises UnknownModel for a model that is not there."""
        versions = self._registry.versions(model)
        if not versions:
            raise UnknownModel(f"failed to unload '{model}': Request for unknown model: '{model}' is not found")
        self._calls.touch(model)
        self._unloaded.add(model)
        for version in versions:
            seen = self._seen.get(model, {}).get(version.number)
            if seen is not None:
                seen.handled = None
            self._tasks.cancel((model, version.number))
            self._retire(model, version.number, "unloaded", keep_listed=True)
