"""Compiled plans in the store: what one server has compiled, others with the same hardware and tools need not.

A plan is native code, or as good as that: only those that are signed with this server's own `plan_key` are read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from app.store.bucket import Bucket
from app.store.errors import NotThere, StoreError, StoreRefused, VersionTaken
from app.store.publications import fetch, publish, read
from app.store.writer import Writer
from engines.signature import SIGNATURE_FILE

__all__ = ["SharedPlans"]

log = logging.getLogger(__name__)
_HEARD_WITHIN_S, _QUIET_S = 5.0, 60.0
"""Models load one behind another: a store that is away keeps the first of them waiting, not each."""


class SharedPlans:
    """Nothing here fails a load or a build: without the store, a plan is compiled."""

    def __init__(self, bucket: Bucket, writer: Writer, plan_key: bytes) -> None:
        self._bucket, self._writer, self._plan_key = bucket, writer, plan_key
        self._quiet_until_s = 0.0

    async def fetch(self, key: str, folder: Path) -> bool:
        """Put the files of a plan into an empty folder; False where there is none that can be read."""
        place = f".plans/{key}"
        if time.monotonic() < self._quiet_until_s:
            return False
        try:
            async with asyncio.timeout(_HEARD_WITHIN_S):
                published = await read(self._bucket, place)
            if not published.is_signed(self._plan_key):
                raise StoreRefused("it is not signed with the plan_key of this server")
            await fetch(self._bucket, place, published, folder)
        except NotThere:
            return False
        except (StoreError, OSError) as error:  # TimeoutError is one
            if not isinstance(error, StoreRefused):
                self._quiet_until_s = time.monotonic() + _QUIET_S
            log.warning("a plan in the store is not used: %s", error or "no answer", extra={"plan": key})
            return False
        log.info("a plan has come from the store", extra={"plan": key})
        return True

    async def give(self, key: str, folder: Path) -> None:
        """Publish a plan; where another was first, theirs stays."""
        files: dict[str, Path | bytes] = {
            path.name: path for path in sorted(folder.iterdir()) if path.name != SIGNATURE_FILE
        }
        try:
            await self._writer.check()
            await publish(self._bucket, f".plans/{key}", files, self._plan_key)
        except VersionTaken:
            return
        except Exception as error:
            log.warning("a plan is not shared: %s", error, extra={"plan": key})
