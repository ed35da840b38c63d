"""A build without a server: the same sandboxed child, the same plan, the same kind of version on disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from app.builds.state import Advance
from app.disk import naming_full_disk
from app.plans import Plans
from app.settings import Settings
from engines import repository
from engines.repository import Manifest
from engines.request import BuildRequest

__all__ = ["Published", "compile_here"]


@dataclass(frozen=True)
class Published:
    """A version that was added, and what it was made from; `report` is JSON where the build wrote one. `warnings`: why
    its compile came to no good end, where the FP32 engine serves for that.
    """

    folder: Path
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
    repository.check_model_folder(settings.models_folder / model)
    settings.models_folder.mkdir(parents=True, exist_ok=True)
    plans = Plans(settings)
    try:
        return asyncio.run(_compile(settings, plans, model, request, advance))
    finally:
        plans.close()


async def _compile(settings: Settings, plans: Plans, model: str, request: BuildRequest, advance: Advance) -> Published:
    warnings: list[str] = []
    manifest = await plans.make(request, lambda reason: None, advance, warnings.append)
    advance("publish", 0.0)
    version = repository.next_version(settings.models_folder, model)
    with naming_full_disk("the repository"):
        folder = repository.publish_version(
            settings.models_folder, model, version, request.files(), repository.encode(manifest)
        )
    plan = await plans.folder_of(folder)
    report = plan / repository.REPORT_FILE if plan is not None else None
    found = report.read_bytes() if report and report.is_file() else None
    return Published(folder, version, manifest, found, tuple(warnings))
