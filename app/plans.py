"""From a model file to a warm session: a cached plan if it can be trusted, else a compile in a child process."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from app.builds.executor import BuildLimits, GpuBuild, render_report, run_build
from app.builds.state import Advance, served_instead
from app.closing import Closing
from app.disk import naming_full_disk
from app.inline import inline_rows
from app.serving.limits import ModelOptions
from app.settings import Settings
from app.tasks import Tasks
from app.temporary import sweep_folders
from app.warmup import warm_up
from engines import repository
from engines.errors import EngineError, PlanInvalid
from engines.repository import Manifest
from engines.request import BuildRequest, GpusHere
from engines.runtime import usable_threads
from engines.runtime.fallback import WithCpu
from engines.runtime.gpus import Gpus
from engines.runtime.plans import Here, Unfit, look_here, unfit_plans
from engines.runtime.session import Session
from engines.signature import key_in
from engines.spec import Target

__all__ = ["Plans", "Say"]

log = logging.getLogger(__name__)
_KEEP_STAGING_S = 3600.0
"""Another process may be at work on what is younger."""
_TIMINGS, _KERNELS = ".timings", ".kernels"
Say = Callable[[str], None]


class Shared(Protocol):
    """Plans of several servers: `app.store.shared_plans`. Neither raises for a store that does not answer."""

    async def fetch(self, key: str, folder: Path) -> bool: ...

    async def give(self, key: str, folder: Path) -> None: ...


class Plans:
    """One compile at a time; whatever in the cache is corrupt, truncated or foreign is rebuilt and logged."""

    def __init__(self, settings: Settings) -> None:
        folder, self._repository = _writable_cache(settings), settings.models_folder
        threads = settings.threads or usable_threads()  # once: a plan that is made later is not for fewer
        self._cache = repository.PlanCache(folder, threads, _plan_key(settings, folder, make=True))
        self._is_temporary = folder != settings.cache_folder
        # plans that came with a read-only repository; nothing is added to them or removed
        given = settings.cache_folder
        self._given = (
            repository.PlanCache(given, threads, _plan_key(settings, given, make=False)) if self._is_temporary else None
        )
        self._distrusted: set[str] = set()
        self.closing = Closing()
        self.lost: Callable[[str], None] = lambda reason: None
        """Told, from any thread, why a GPU can no longer be used."""
        self.shared: Shared | None = None
        """Plans that servers have in common, if they do."""
        self._giving = Tasks()
        self._gpus = Gpus(lambda error: self.lost(str(error)), folder / _KERNELS, settings.gpu_hang_s)
        self._not_on_gpu: dict[str, str] = {}
        self._limits = BuildLimits(
            settings.build_timeout_s, settings.build_memory_bytes, threads, cpu_s=settings.build_cpu_s
        )
        self._builds_for_gpus = settings.build_for_gpus
        self._gpus_here: GpusHere | None = None
        self._has_looked = False
        self._turn, self._pages = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self._known_keys: dict[Path, tuple[tuple[int, ...], str]] = {}

    async def sweep(self) -> None:
        """Remove what killed servers, compiles and publications left behind."""
        await asyncio.to_thread(sweep_folders)
        await asyncio.to_thread(self._cache.sweep, _KEEP_STAGING_S, time.time())
        await asyncio.to_thread(self._gpus.sweep, self._manifests, _KEEP_STAGING_S, time.time())
        await asyncio.to_thread(repository.sweep_versions, self._repository, _KEEP_STAGING_S, time.time())

    def _manifests(self) -> list[Manifest]:
        return [manifest for cache in (self._cache, self._given) if cache is not None for manifest in cache.manifests()]

    async def wait_shared(self) -> None:
        """Until what was compiled is where others find it, or that has failed."""
        await self._giving.wait()

    def close(self) -> None:
        """Share nothing more. Remove the cache folder if it was made for this process alone."""
        self._giving.cancel_all()
        if self._is_temporary:
            shutil.rmtree(self._cache.folder, ignore_errors=True)

    async def find(self, request: BuildRequest) -> Manifest | None:
        """The manifest of a plan that was compiled from exactly these bytes, if there is one.

        Raises ModelRefused where what is asked cannot be read.
        """
        return await self._trusted(await self._key(request))

    async def make(
        self,
        request: BuildRequest,
        say: Say,
        advance: Advance = lambda stage, share: None,
        warn: Say = lambda reason: None,
    ) -> Manifest:
        """The same, compiled now if need be; `advance` is told its stages as they begin and go on.

        `warn` is told why the compile came to no good end after its FP32 engine was proven: that one is the plan then.
        Raises EngineError with the reason.
        """
        key = await self._key(request)
        async with self._turn:
            manifest = await self._trusted(key)
            if manifest is not None:
                return manifest
            manifest = await self._shared(key)
            if manifest is not None:
                return manifest
            say("compiling")
            manifest = await self._compiled(request, key, advance, warn)
            if self.shared is not None:  # beside all else: a store may be slow
                self._giving.spawn(self.shared.give(key, self._cache.entry(key)))
            return manifest

    async def _shared(self, key: str) -> Manifest | None:
        """A plan that another server has compiled, checked as what a compile leaves is."""
        if self.shared is None:
            return None
        with self._cache.handover(key) as folder:
            try:
                if await self.shared.fetch(key, folder):
                    return await asyncio.to_thread(self._cache.adopt, folder, key)
            except PlanInvalid as error:
                log.warning("a plan in the store is not used: %s", error, extra={"plan": key})
        return None

    async def renew(self, request: BuildRequest) -> Manifest:
        """Compile again, for the GPUs and libraries that are here, what has plans that are not read; the plan before
        stays until there is another.

        Raises EngineError with the reason where none came of it.
        """
        key, here = await self._key(request), await asyncio.to_thread(look_here)
        async with self._turn:
            manifest = await self._trusted(key)
            if manifest is not None and not await self.unfit(request, manifest):
                return manifest  # another version of the same files was first
            return await self._compiled(request, key, gpus=tuple(f"sm{sm}" for sm in here.sms), replacing=True)

    async def unfit(self, request: BuildRequest, manifest: Manifest) -> list[Unfit]:
        """Plans for GPUs that must not be read here, or that are not there though they would be built, and why."""
        cache = self._cache_of(manifest.key)
        if not manifest.plans:
            asked = await self._with_what_is_here(request)
            return await asyncio.to_thread(_missing, asked, request, cache.entry(manifest.key))
        return await asyncio.to_thread(
            lambda: unfit_plans(cache.entry(manifest.key), manifest, cache.plan_key, look_here())
        )

    async def _compiled(
        self, request: BuildRequest, key: str, advance: Advance = lambda stage, share: None,
        warn: Say = lambda reason: None, *, gpus: tuple[str, ...] = (), replacing: bool = False,
    ) -> Manifest:  # fmt: skip
        log.info("compiling %s", request.source.parent.parent.name, extra={"plan": key})
        with (
            naming_full_disk("the cache"),
            self._cache.handover(key) as folder,
            self._cache.handover(key) as fallback,  # not the same: a plan is never written over another
        ):
            asked = await self._with_what_is_here(request)
            instead = await run_build(
                asked, folder, self._limits, progress=advance, fallback=fallback, gpus=await self._gpu_build(gpus)
            )
            left, said = folder, ""
            if instead is not None:
                if replacing:  # what is there is as good as what was left, or better
                    raise EngineError(instead.reason)
                left, said = instead.folder, served_instead(instead.reason, is_whole=instead.is_whole)
                log.warning("%s", said, extra={"plan": key})
            manifest = await asyncio.to_thread(lambda: self._cache.adopt(left, key, replacing=replacing))
        if said:
            warn(said)
        return manifest

    async def _gpu_build(self, names: tuple[str, ...]) -> GpuBuild | None:
        here = await asyncio.to_thread(look_here)
        if not here.sms:
            return None
        timings = self._cache.folder / _TIMINGS
        timings.mkdir(exist_ok=True)
        return GpuBuild(names, timings)

    async def open(
        self, request: BuildRequest, manifest: Manifest, options: ModelOptions, say: Say
    ) -> tuple[Manifest, Session]:
        """Import a plan and warm it up; one that turns out corrupt is thrown away and compiled again, once."""
        try:
            return manifest, await self._warm(manifest, options)
        except PlanInvalid as error:
            await self._distrust(manifest.key, error)
        manifest = await self.make(request, say)
        return manifest, await self._warm(manifest, options)

    async def render(self, folder: Path) -> bytes:
        """The page of the report in a plan's folder; kept there for the next time, where that can be written.

        Raises ModelRefused or PlanInvalid where it cannot be drawn.
        """
        async with self._pages:
            kept = folder / repository.REPORT_PAGE
            if kept.is_file():
                return await asyncio.to_thread(kept.read_bytes)
            page = await render_report(folder / repository.REPORT_FILE, self._limits)
            await asyncio.to_thread(repository.keep_page, folder, page)
            return page

    async def folder_of(self, version: Path) -> Path | None:
        """The folder of the plan of a version's folder, if there is one; the files are hashed where they are new."""
        stamp, known = repository.stamp_of(version), self._known_keys.get(version)
        if known is None or known[0] != stamp:
            try:
                known = self._known_keys[version] = stamp, await self._key(BuildRequest.of_folder(version))
            except (EngineError, OSError):
                return None
        folder = self._entry(known[1])
        return folder if folder.is_dir() else None

    async def _warm(self, manifest: Manifest, options: ModelOptions) -> Session:
        return await self.closing.opened(functools.partial(self._import, manifest, options))

    def _import(self, manifest: Manifest, options: ModelOptions) -> Session:
        session = self._on_gpu(manifest, options) or self._on_cpu(manifest, options)
        try:
            # two are not for the plan, then
            alone = session.is_on_gpu and (options.limits.max_batch_rows <= 1 or session.most_rows == 1)
            warm_up(session, manifest, (1, 2) if manifest.proof.batchable and not alone else (1,))
            if not session.is_on_gpu:
                session.inline_rows = inline_rows(session, manifest, options.limits.max_batch_rows or 1)
        except BaseException:
            self.closing.start(session)
            raise
        return session

    def _on_cpu(self, manifest: Manifest, options: ModelOptions) -> Session:
        from engines.runtime.openvino import load_session  # heavy, and not needed by an empty repository

        folder = self._entry(manifest.key)
        return load_session(folder, manifest, streams=options.streams, instances=options.instances)

    def _on_gpu(self, manifest: Manifest, options: ModelOptions) -> Session | None:
        """None where no plan fits what is here: the CPU answers, too. Without memory for one that does, nothing is
        loaded, and what serves goes on.
        """
        self._not_on_gpu.pop(manifest.key, None)
        cache = self._cache_of(manifest.key)
        try:
            session = self._gpus.open(
                cache.entry(manifest.key), manifest, cache.plan_key, devices=options.gpus,
                instances=options.instances, most_rows=options.limits.max_batch_rows,
            )  # fmt: skip
        except PlanInvalid as error:
            log.warning("a plan for a GPU is not used, the CPU answers: %s", error, extra={"plan": manifest.key})
            self._not_on_gpu[manifest.key] = str(error)
            return None
        cpu = functools.partial(self._on_cpu, manifest, options)
        return None if session is None else WithCpu(session, cpu, manifest.inputs)

    def not_on_gpu(self, manifest: Manifest) -> str:
        """Why a plan that seemed to fit is not used; empty where there is none, or it is."""
        return self._not_on_gpu.get(manifest.key, "")

    async def _key(self, request: BuildRequest) -> str:
        return await asyncio.to_thread(request.key, self._limits.threads)

    async def _with_what_is_here(self, request: BuildRequest) -> BuildRequest:
        if self._builds_for_gpus and not self._has_looked:
            self._gpus_here, self._has_looked = _gpus_of(await asyncio.to_thread(look_here)), True
        return dataclasses.replace(request, here=self._gpus_here)

    def _cache_of(self, key: str) -> repository.PlanCache:
        """Where the plan of a key is, or will be."""
        given = self._given
        if given is None or key in self._distrusted or self._cache.entry(key).exists():
            return self._cache
        return given if given.entry(key).exists() else self._cache

    def _entry(self, key: str) -> Path:
        return self._cache_of(key).entry(key)

    async def _trusted(self, key: str) -> Manifest | None:
        try:
            return await asyncio.to_thread(lambda: self._cache_of(key).manifest(key))
        except PlanInvalid as error:
            await self._distrust(key, error)
            return None

    async def _distrust(self, key: str, error: PlanInvalid) -> None:
        log.warning("a cached plan was not trusted and will be compiled again: %s", error, extra={"plan": key})
        if self._cache_of(key) is self._given:  # it cannot be removed, only passed over
            self._distrusted.add(key)
        else:
            await asyncio.to_thread(self._cache.discard, key)


def _plan_key(settings: Settings, folder: Path, *, make: bool) -> bytes | None:
    return settings.own_plan_key or key_in(folder, make=make)


def _writable_cache(settings: Settings) -> Path:
    """The cache folder, or a temporary one where it cannot be written: a read-only repository is served, too."""
    folder = settings.cache_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="bitserve-cache-"))
        log.warning(
            "the cache folder cannot be written (%s); its plans are used, new ones will not survive this process",
            error.strerror,
        )
        return temporary


def _missing(asked: BuildRequest, sent: BuildRequest, folder: Path) -> list[Unfit]:
    """A plan that a build for what is here would make, and why it is not there, as the report in `folder` says."""
    if asked.here is None or asked.read_spec() == sent.read_spec():
        return []
    target = asked.here.target
    try:
        told = msgspec.json.decode((folder / repository.REPORT_FILE).read_bytes(), type=_Told).targets
    except (OSError, msgspec.MsgspecError):
        told = ()
    reason = next((made.reason for made in told if made.target == target and not made.made), "")
    return [Unfit(target, reason or "there is none yet for the GPU that is here", not reason)]


def _gpus_of(here: Here) -> GpusHere | None:
    """What plans can be built for on this machine: by TensorRT, which builds for one kind of GPU, the first that is
    here; else by TensorRT-RTX.
    """
    builders: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx") if len(here.sms) == 1 else ("tensorrt-rtx",)
    found = next((target for target in builders if target in here.versions), None)
    return GpusHere(found, tuple(f"sm{sm}" for sm in here.sms)) if found and here.sms else None


class _ToldTarget(msgspec.Struct):
    target: str
    made: bool
    reason: str = ""


class _Told(msgspec.Struct):
    """Of a report, what became of its targets."""

    targets: tuple[_ToldTarget, ...] = ()
