"""Plans made in this process, without the sandbox: what tests of the compiler look at."""

from __future__ import annotations

from pathlib import Path

from engines.build import build
from engines.clock import Progress
from engines.manifest import Manifest
from engines.repository import PlanCache
from engines.request import BuildRequest

__all__ = ["compile_into"]


def compile_into(
    cache: PlanCache, source: Path, progress: Progress = lambda stage, share: None, threads: int = 0
) -> Manifest:
    """Compile a model file alone, and take the plan into `cache`, as the server would."""
    with cache.handover("test") as folder:
        manifest = build(BuildRequest(source), folder, progress, threads)
        return cache.adopt(folder, manifest.key)
