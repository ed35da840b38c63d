"""`python -m tests.support.known_plans serve ...`: the server; it compiles nothing of a repository that another has.

Suites that are run once more (with front ends, on a simulated GPU) have compiled everything before: there, the first
server that loads a file compiles it for all others. What is uploaded is compiled by each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import app.plans
from app.cli import main
from engines.manifest import Manifest
from engines.request import BuildRequest
from tests.support.servers import KNOWN_PLANS

__all__ = ["known_plans"]


async def _compile_once(self: app.plans.Plans, request: BuildRequest, key: str, *more: Any, **others: Any) -> Manifest:
    known = Path(os.environ.get(KNOWN_PLANS, "")) / key
    is_sent = ".builds" in request.source.parts
    if KNOWN_PLANS not in os.environ or is_sent or others.get("replacing"):
        return await _compiled(self, request, key, *more, **others)
    if known.is_dir():
        app.plans.log.info("compiling %s", request.source.parent.parent.name, extra={"plan": key})
        with self._cache.handover(key) as folder:
            await asyncio.to_thread(shutil.copytree, known, folder, dirs_exist_ok=True)
            return await asyncio.to_thread(self._cache.adopt, folder, key)
    manifest = await _compiled(self, request, key, *more, **others)
    await asyncio.to_thread(_keep, self._cache.entry(key), known)
    return manifest


def _keep(plan: Path, known: Path) -> None:
    with tempfile.TemporaryDirectory(dir=known.parent) as folder:
        made = shutil.copytree(plan, Path(folder) / known.name)
        with contextlib.suppress(OSError):  # another was first
            made.rename(known)


_compiled = app.plans.Plans._compiled


@contextlib.contextmanager
def known_plans() -> Iterator[None]:
    """Servers of this process take what is known, as long as the block lasts."""
    with patch.object(app.plans.Plans, "_compiled", _compile_once):
        yield


if __name__ == "__main__":
    with known_plans():
        main()
