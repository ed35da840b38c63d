"""The Jobs of a cluster as they are now: listed once, then watched, and listed anew where the watch has lost them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from app.cluster.api import Change, Cluster, Gone
from app.cluster.errors import ClusterError

__all__ = ["Jobs"]

log = logging.getLogger(__name__)
Object = dict[str, Any]
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LISTED_ANEW_AFTER = 4


class Jobs:
    """`known` has them by name, and is None until they were listed."""

    def __init__(self, cluster: Cluster, selector: str, changed: Callable[[], None]) -> None:
        self._cluster, self._selector, self._changed = cluster, selector, changed
        self.known: dict[str, Object] | None = None
        self._version = ""

    async def follow(self) -> None:
        """Until it is cancelled; ever more rarely, with jitter, while the API is away."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                async for change in self._cluster.watch_jobs(self._selector, self._version):
                    failures = 0
                    self._take(change)
                failures = 0  # the API ends every watch after some minutes
                pause_s = _PAUSE_S
            except Gone:
                self._version, pause_s = "", _PAUSE_S
                log.info("Jobs are listed anew: the API does not remember what came after the last list")
            except ClusterError as error:
                if not failures:
                    log.warning("Jobs are not followed for now: %s", error)
                failures = min(failures + 1, 10)
                pause_s = min(_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
                if failures >= _LISTED_ANEW_AFTER:  # it may be the change after this version that cannot be read
                    self._version = ""
            except Exception:
                log.exception("Jobs could not be followed")
                self._version, pause_s = "", _LONGEST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _list(self) -> None:
        found, self._version = await self._cluster.jobs(self._selector)
        self.known = {job["metadata"]["name"]: job for job in found}
        self._changed()

    def _take(self, change: Change) -> None:
        metadata = change.object.get("metadata", {})
        self._version = str(metadata.get("resourceVersion", self._version))
        if change.kind == "BOOKMARK" or self.known is None:
            return
        if change.kind == "DELETED":
            self.known.pop(metadata["name"], None)
        else:
            self.known[metadata["name"]] = change.object
        self._changed()
