"""Compiled plans in the store: what one server has compiled, others with the same hardware and tools need not.

A plan is native code, or as good as that: only those that are signed with this server's own `plan_key` are read.
"""

from __future__ import annotations

import logging
from pathlib import Path

from app.store.bucket import Bucket
from app.store.errors import NotThere, StoreError, VersionTaken
from app.store.publications import fetch, publish, read
from app.store.writer import Writer
from engines.signature import SIGNATURE_FILE

__all__ = ["SharedPlans"]

log = logging.getLogger(__name__)


class SharedPlans:
    """Nothing here fails a load or a build: without the store, a plan is compiled."""

    def __init__(self, bucket: Bucket, writer: Writer, plan_key: bytes) -> None:
        self._bucket, self._writer, self._plan_key = bucket, writer, plan_key

    async def fetch(self, key: str, folder: Path) -> bool:
        """Put the files of a plan into an empty folder; False where there is none that can be read."""
        place = f".plans/{key}"
        try:
            published = await read(self._bucket, place)
            if not published.is_signed(self._plan_key):
                raise StoreError("it is not signed with the plan_key of this server")
            await fetch(self._bucket, place, published, folder)
        except NotThere:
            return False
        except (StoreError, OSError) as error:
            log.warning("a plan in the store is not used: %s", error, extra={"plan": key})
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
