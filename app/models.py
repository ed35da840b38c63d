"""Bring models from disk into service and out again: look, load, swap, unload. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.config import ModelConfig, model_options, read_config
from app.overrides import Overrides
from app.plans import Plans
from app.serving.endpoint import Endpoint
from app.serving.errors import UnknownModel
from app.serving.gateway import Gateway
from app.serving.registry import ModelState, Version
from app.settings import Settings
from engines import repository
from engines.errors import BadRepository, EngineError
from engines.repository import VersionFiles
from engines.runtime.session import Session

__all__ = ["ModelManager"]

log = logging.getLogger(__name__)
_SECOND_LOOK_S = 0.3
_REPLACED = "another version is served"
Signature = tuple[tuple[int, int, int], tuple[int, int] | None]
"""(size, mtime ns, inode) of the model file; (size, mtime ns) of config.toml, None where there is none."""

_NOTHING: Signature = ((-1, -1, -1), None)


@dataclass(slots=True)
class _Seen:
    """What the last look saw of a version, and which sight of it a load was started for."""

    last: Signature
    handled: Signature | None = None


class ModelManager:
    """Runs on the event loop; disk and imports happen in threads, compiles in child processes."""

    def __init__(self, settings: Settings, gateway: Gateway) -> None:
        self._settings, self._gateway, self._registry = settings, gateway, gateway.registry
        self._plans = Plans(settings)
        self._seen: dict[str, dict[int, _Seen]] = {}
        self._unloaded: set[str] = set()
        self._overrides = Overrides()
        self._loads: dict[tuple[str, int], asyncio.Task[str]] = {}
        self._sessions: dict[Endpoint, Session] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look once before the server answers, so that its index is complete; then watch."""
        await self._plans.sweep()
        await self.look()
        self._spawn(self._watch())

    async def stop(self) -> None:
        """Cancel loads and the watch; a compile under way is ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._overrides.close()

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

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- looking -------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Compare the disk with what is served; start loads, unload what is gone."""
        found = await asyncio.to_thread(self._scan)
        for model in [model for model in self._seen if model not in found]:
            self._unloaded.discard(model)
            found[model] = []
        for model, versions in found.items():
            self._forget_missing(model, {files.version for files in versions})
            if model not in self._unloaded:
                self._look_at(model, versions)

    def _scan(self) -> dict[str, list[VersionFiles]]:
        """Versions on disk; those that a load call brought stand in for the repository's."""
        return {**repository.scan(self._settings.repository), **self._overrides.scan()}

    def _forget_missing(self, model: str, present: set[int]) -> None:
        seen = self._seen.setdefault(model, {})
        for number in [number for number in seen if number not in present]:
            del seen[number]
            self._cancel_load(model, number)
            self._retire(model, number, "its files are gone")
        if not seen:
            self._seen.pop(model)
            self._overrides.drop(model)

    def _look_at(self, model: str, versions: list[VersionFiles]) -> None:
        config_stamp = _stamp(self._config_file(model))
        known = self._seen.setdefault(model, {}) if versions else {}
        for files in versions:
            known.setdefault(files.version, _Seen(_NOTHING))
        for files in versions:
            signature = (files.stamp, config_stamp)
            seen = known[files.version]
            twice, is_new = seen.last == signature, seen.last == _NOTHING
            seen.last = signature
            if files.version not in self._wanted(model):
                seen.handled = None
            elif (twice or is_new) and seen.handled != signature and (model, files.version) not in self._loads:
                self._take(files, seen, settled=twice or files.has_manifest)
        self._retire_replaced(model)

    def _take(self, files: VersionFiles, seen: _Seen, *, settled: bool) -> None:
        """Load a version that is whole: seen alike twice, published with a manifest, or compiled before."""
        if self._registry.get(files.model, files.version) is None:
            self._registry.set(
                Version(files.model, files.version, ModelState.LOADING, "waiting for its files to settle")
            )
        if settled:
            seen.handled = seen.last
        self._start_load(files, only_known=not settled)

    def _start_load(self, files: VersionFiles, *, only_known: bool = False) -> asyncio.Task[str]:
        key = (files.model, files.version)
        seen = self._seen.get(files.model, {}).get(files.version)
        sight = seen.last if seen is not None else _NOTHING
        task = self._loads[key] = self._spawn(self._load(files, sight, only_known=only_known))

        def ended(_: object) -> None:
            if self._loads.get(key) is task:
                del self._loads[key]

        task.add_done_callback(ended)
        return task

    def _cancel_load(self, model: str, number: int) -> None:
        task = self._loads.pop((model, number), None)
        if task is not None:
            task.cancel()

    def _config_file(self, model: str) -> Path:
        return self._settings.repository / model / repository.CONFIG_FILE

    def _config(self, model: str) -> ModelConfig:
        """The configuration in force; BadRepository where the file is wrong."""
        override = self._overrides.config(model)
        if override is not None:
            return override
        try:
            return read_config(self._config_file(model).read_text("utf-8"))
        except FileNotFoundError:
            return ModelConfig()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BadRepository(f"config.toml cannot be read: {why}") from error

    def _wanted(self, model: str) -> set[int]:
        """Version numbers that the model's policy serves; the latest where the configuration is wrong."""
        numbers = set(self._seen.get(model, {}))
        try:
            policy = self._config(model).versions
        except BadRepository:
            policy = "latest"
        if policy == "latest":
            return {max(numbers)} if numbers else set()
        return numbers if policy == "all" else numbers & set(policy)

    # -- loading -------------------------------------------------------------------------------------------------

    async def _load(self, files: VersionFiles, sight: Signature, *, only_known: bool = False) -> str:
        """Compile if needed, import, warm up, swap in. Whatever fails leaves a served version as it is.

        `sight` is what was seen of the files when the load was decided. Returns why it failed, or nothing.
        """
        try:
            config = self._config(files.model)
            manifest = await self._plans.find(files.source)
            if manifest is None and only_known:
                return ""
            say = self._sayer(files)
            if manifest is None:
                manifest = await self._plans.make(files.source, say)
            options = model_options(
                config,
                self._settings.repository / files.model,
                batchable=manifest.proof.batchable,
                max_batch_rows=self._settings.max_batch_size,
                max_queue_rows=self._settings.max_queue_rows,
                outputs=[spec.name for spec in manifest.outputs],
            )
            manifest, session = await self._plans.open(files.source, manifest, options.instances, say)
            endpoint = Endpoint(
                files.model, files.version, manifest.inputs, manifest.outputs, session, options, self._gateway.device
            )
            endpoint.fails_on_values = manifest.fails_on_values
            endpoint.hold_requests = self._settings.delay_scheduler
            self._sessions[endpoint] = session
            reason = "" if manifest.proof.batchable else f"not batched: {manifest.proof.reason}"
            self._swap_in(endpoint, reason, sight)
        except EngineError as error:
            return self._fail(files, str(error))
        except OSError as error:  # its own text would name a path of this machine
            return self._fail(files, f"its files cannot be read: {error.strerror or type(error).__name__}")
        except Exception as error:
            log.exception("loading %s/%d", files.model, files.version)
            return self._fail(files, f"it could not be loaded: {error}")
        return ""

    def _swap_in(self, endpoint: Endpoint, reason: str, sight: Signature) -> None:
        """From here on new requests meet the new engine; the old one answers what it accepted."""
        model, number = endpoint.model, endpoint.version
        if model in self._unloaded or number not in self._seen.get(model, {}):
            self._stop(endpoint, lambda: None)  # unloaded or removed while it was loading
            return
        old = self._registry.get(model, number)
        self._registry.set(Version(model, number, ModelState.READY, reason, endpoint))
        self._seen[model][number].handled = sight  # not what was seen since: that is loaded next
        log.info("%s/%d is ready", model, number, extra={"note": reason} if reason else None)
        if old is not None and old.endpoint is not None:
            self._stop(old.endpoint, lambda: None)
        self._retire_replaced(model)

    def _fail(self, files: VersionFiles, reason: str) -> str:
        log.warning("%s/%d is unavailable: %s", files.model, files.version, reason)
        current = self._registry.get(files.model, files.version)
        if current is not None and current.state is ModelState.READY:
            current.reason = f"the version loaded before still serves; loading it anew failed: {reason}"
        else:
            self._registry.set(Version(files.model, files.version, ModelState.UNAVAILABLE, reason))
        return reason

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

    def _retire(self, model: str, number: int, reason: str, *, keep_listed: bool = False) -> None:
        """Stop a version; the requests it accepted are answered first."""
        version = self._registry.get(model, number)
        if version is None or version.state is ModelState.UNLOADING:
            return

        def gone() -> None:
            if self._registry.get(model, number) is not version:
                return  # loaded anew while it drained
            if keep_listed:
                self._registry.set(Version(model, number, ModelState.UNAVAILABLE, reason))
            else:
                self._registry.drop(model, number)

        if version.endpoint is None:
            gone()
        else:
            version.state, version.reason = ModelState.UNLOADING, reason
            self._stop(version.endpoint, gone)

    def _stop(self, endpoint: Endpoint, then: Callable[[], None]) -> None:
        def stopped() -> None:
            session = self._sessions.pop(endpoint, None)
            if session is not None:
                self._spawn(asyncio.to_thread(session.close))
            then()

        self._gateway.retire(endpoint, stopped)

    # -- the repository API --------------------------------------------------------------------------------------

    async def load(
        self, model: str, config: ModelConfig | None = None, brought: Mapping[int, bytes] = MappingProxyType({})
    ) -> None:
        """Load (or reload) a model now; returns when it serves. BadRepository gives the reason if it cannot.

        `config` stands in for the file, and `brought` (model files by version) for the repository's versions, until
        the next load. A configuration that cannot be loaded does not stay in force.
        """
        repository.check_model_name(model)
        await asyncio.to_thread(self._overrides.set_files, model, brought)
        found = (await asyncio.to_thread(self._scan)).get(model)
        if not found:
            raise BadRepository(f"failed to load '{model}', failed to poll from model repository: no such model")
        before = self._overrides.set_config(model, config)
        try:
            await self._load_wanted(model, found)
        except BadRepository:
            if self._overrides.config(model) is config:
                self._overrides.set_config(model, before)
                await asyncio.to_thread(self._overrides.set_files, model, {})
            raise

    async def _load_wanted(self, model: str, found: list[VersionFiles]) -> None:
        self._unloaded.discard(model)
        config_stamp = _stamp(self._config_file(model))
        self._seen[model] = {files.version: _Seen((files.stamp, config_stamp)) for files in found}
        wanted = [files for files in found if files.version in self._wanted(model)]
        if not wanted:
            raise BadRepository(
                f"failed to load '{model}': it has none of the versions that its configuration asks for"
            )
        failures = await asyncio.gather(*(self._load_now(files) for files in wanted))
        for files, failure in zip(wanted, failures, strict=True):
            if failure:
                raise BadRepository(f"failed to load '{model}', version {files.version}: {failure}")
        present = {files.version for files in found}
        for version in self._registry.versions(model):
            if version.number not in present:
                self._retire(model, version.number, "its files are gone")

    async def _load_now(self, files: VersionFiles) -> str:
        """Wait for a load that is under way, then load what is on disk now. Returns why it failed, or nothing."""
        running = self._loads.get((files.model, files.version))
        if running is not None:
            await asyncio.wait({running})
        current = self._registry.get(files.model, files.version)
        if current is None or current.state is not ModelState.READY:
            self._registry.set(Version(files.model, files.version, ModelState.LOADING, "loading"))
        seen = self._seen.get(files.model, {}).get(files.version)
        if seen is not None:
            seen.handled = seen.last
        task = self._start_load(files)
        await asyncio.wait({task})
        return "it was unloaded meanwhile" if task.cancelled() else task.result()

    def unload(self, model: str) -> None:
        """Stop all versions of a model; returns at once. Raises UnknownModel for a model that is not there."""
        versions = self._registry.versions(model)
        if not versions:
            raise UnknownModel(f"failed to unload '{model}': Request for unknown model: '{model}' is not found")
        self._unloaded.add(model)
        for version in versions:
            seen = self._seen.get(model, {}).get(version.number)
            if seen is not None:
                seen.handled = None
            self._cancel_load(model, version.number)
            self._retire(model, version.number, "unloaded", keep_listed=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
