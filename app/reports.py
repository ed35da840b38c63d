"""What was found when a version was built: the report beside its plan, as data and as a page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.models import ModelManager
from engines.repository import REPORT_FILE, REPORT_PAGE

__all__ = ["Render", "Reports"]

Render = Callable[[Path], Awaitable[bytes]]
"""Makes the page of the report in a plan's folder. It draws, which takes long and loads much: not in this process."""


class Reports:
    """Reads only; a plan that is built anew brings its own. Without `render`, a page is there if the build made one."""

    def __init__(self, manager: ModelManager, render: Render | None = None) -> None:
        self._manager, self._render = manager, render

    async def document(self, model: str, version: int) -> bytes | None:
        """The report as JSON; None where there is no such version, or no report of it."""
        return await self._read(model, version, REPORT_FILE)

    async def exists(self, model: str, version: int) -> bool:
        """Whether there is such a version, and a report of it."""
        plan = await self._plan(model, version)
        return plan is not None and (plan / REPORT_FILE).is_file()

    async def page(self, model: str, version: int) -> bytes | None:
        """The report as a self-contained HTML page; None as above."""
        found = await self._read(model, version, REPORT_PAGE)
        if found is None and self._render is not None and await self.document(model, version) is not None:
            plan = await self._plan(model, version)
            return await self._render(plan) if plan is not None else None
        return found

    async def _read(self, model: str, version: int, file: str) -> bytes | None:
        plan = await self._plan(model, version)
        if plan is None:
            return None
        try:
            return await asyncio.to_thread((plan / file).read_bytes)
        except FileNotFoundError:
            return None

    async def _plan(self, model: str, version: int) -> Path | None:
        folder = self._manager.version_folder(model, version)
        return await self._manager.plans.folder_of(folder) if folder is not None else None
