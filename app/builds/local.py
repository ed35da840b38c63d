"""A build without a server: the same sandboxed child, the same plan, the same kind of version on disk."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from app.builds.state import Advance
from app.builds.versions import LocalVersions, Versions
from app.plans import Plans
from app.settings import Settings
from app.temporary import with_mirror
from engines import repository
from engines.repository import Manifest
from engines.request import BuildRequest

__all__ = ["Published", "compile_here"]


@dataclass(frozen=True)
class Published:
    """A version that was added, where it is now, and what it was made from; `report` is JSON where the build wrote one.
    `warnings`: why its compile came to no good end, where the FP32 engine serves for that.
    """

    place: str
    version: int
    manifest: Manifest
    report: bytes | None
    warnings: tuple[str, ...]


def compile_here(
    settings: Settings, model: str, request: BuildRequest, advance: Advance = lambda stage, share: None
) -> Published:
    """Compile, and add the next version of `model` to the repository of `settings`, which is made where it is not.

    `advance` is told the stages as they begin and go on. Raises EngineError with the reason, or OSError.
    """
    repository.check_model_name(model)
    with contextlib.ExitStack() as leaving:
        settings = with_mirror(settings, leaving)
        repository.check_model_folder(settings.models_folder / model)
        settings.models_folder.mkdir(parents=True, exist_ok=True)
        plans = Plans(settings)
        leaving.callback(plans.close)
        return asyncio.run(_compile(settings, plans, model, request, advance))


async def _compile(settings: Settings, plans: Plans, model: str, request: BuildRequest, advance: Advance) -> Published:
    warnings: list[str] = []
    versions = _versions(settings, plans)
    await versions.check()
    manifest = await plans.make(request, lambda reason: None, advance, warnings.append)
    advance("publish", 0.0)
    version = await versions.next_version(model)
    await versions.publish(model, version, request.files(), repository.encode(manifest))
    await plans.wait_shared()
    folder = settings.models_folder / model / str(version)
    plan = await plans.folder_of(folder)
    report = plan / repository.REPORT_FILE if plan is not None else None
    found = report.read_bytes() if report and report.is_file() else None
    place = f"{settings.store.rstrip('/')}/{model}/{version}" if settings.store is not None else str(folder)
    return Published(place, version, manifest, found, tuple(warnings))


def _versions(settings: Settings, plans: Plans) -> Versions:
    if settings.store is None:
        return LocalVersions(settings.models_folder)
    from app.store.opened import open_store  # the clients of stores, which a folder does not need

    opened = open_store(settings.store, settings.models_folder, settings.own_plan_key)
    plans.shared = opened.plans
    return opened.versions
