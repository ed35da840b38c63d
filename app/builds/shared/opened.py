"""The builds that servers of a store have in common, put together for one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.builds.jobs import Limits
from app.builds.shared.arrivals import Arrivals
from app.builds.shared.builds import Runner, SharedBuilds
from app.builds.shared.carry import CarriedWork
from app.builds.shared.name import Name
from app.builds.shared.records import Records
from app.builds.shared.servers import ServerRunner
from app.builds.shared.silence import Silence
from app.settings import Settings
from app.store.opened import OpenStore

__all__ = ["open_builds"]


def open_builds(
    settings: Settings, store: OpenStore, work: CarriedWork, arrivals: Arrivals, limits: Limits, folder: Path
) -> SharedBuilds:
    """Nothing is asked of store or cluster yet. `folder` is for uploads, and for builds that run here."""
    records, name = Records(store.bucket, store.writer.check), Name(folder)

    def runner(wake: Callable[[], None]) -> Runner:
        if settings.build_executor == "process":
            return ServerRunner(records, work, name, folder, wake, Silence(records))
        from app.cluster.api import connect
        from app.cluster.job import JobOptions
        from app.cluster.runner import JobRunner

        options = JobOptions(
            settings.build_memory_bytes,
            settings.build_timeout_s,
            settings.build_image or "",
            settings.gpu_selector,
            settings.build_gpu_runtime_class or "",
        )
        return JobRunner(records, connect, options, wake, Silence(records), settings.pod_name or "")

    return SharedBuilds(records, runner, arrivals, limits, folder, name)
