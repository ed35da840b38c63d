"""Servers that share a store carry out builds themselves: one at a time each, the oldest that nobody has taken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.builds.shared.carry import CarriedWork, carry_out
from app.builds.shared.name import Name
from app.builds.shared.records import Records, Seen
from app.builds.shared.silence import Silence
from app.store.errors import StoreError

__all__ = ["ServerRunner"]

log = logging.getLogger(__name__)
_PAUSE_S = 20.0
_PUBLISHES_WITHIN_S = 10.0
"""Once the server is told to stop: a store that hangs does not keep it."""


class ServerRunner:
    """Satisfies `app.builds.shared.builds.Runner`. A try belongs to who made its claim: the store lets one make it."""

    def __init__(
        self, records: Records, work: CarriedWork, name: Name, scratch: Path, wake: Callable[[], None], silence: Silence
    ) -> None:
        """`wake` is told when there is time for another build."""
        self._records, self._work, self._name, self._scratch, self._wake = records, work, name, scratch, wake
        self._silence = silence
        self._task: asyncio.Task[None] | None = None
        self._build, self._publishes = "", False
        self._not_before_s = 0.0
        self._stopping = False

    async def start(self) -> None:
        """What an earlier process left is taken up at once where it had the same folder, else found by its silence."""

    async def look(self, active: Sequence[Seen]) -> None:
        """Take the oldest that is free, if this server has time."""
        self._silence.look(active)
        if self._build not in {seen.id for seen in active}:
            self._end_unless_it_publishes()  # another server was told to cancel it, or it was removed
        for seen in active:
            if self._task is not None or self._stopping or time.monotonic() < self._not_before_s:
                return
            if await self._is_free(seen) and await self._records.claim(seen.id, seen.claims + 1, self._name.own):
                self._begin(seen, seen.claims + 1)

    async def _is_free(self, seen: Seen) -> bool:
        """Also where this disk's server had it, which has ended."""
        before = self._name.before
        if seen.claims and before and await self._records.claimed_by(seen) == before:
            return True
        return await self._silence.is_free(seen)

    def _begin(self, seen: Seen, number: int) -> None:
        self._build, self._publishes = seen.id, False
        self._task = asyncio.get_running_loop().create_task(self._carry(seen, number))

    async def _carry(self, seen: Seen, number: int) -> None:
        try:
            await carry_out(
                self._records, self._work, seen, number, self._name.own, self._scratch, self._note_publishing
            )
        except (StoreError, OSError) as error:  # others may fare better
            self._not_before_s = time.monotonic() + _PAUSE_S
            log.warning("build %s is given back, and tried again: %s", seen.id, error)
        except Exception:
            log.exception("build %s", seen.id)
        finally:
            self._task = None
            self._wake()

    def _note_publishing(self) -> None:
        self._publishes = True

    def _end_unless_it_publishes(self) -> None:
        if self._task is not None and not self._publishes and not self._task.cancelling():
            self._task.cancel()

    async def cancelled(self, build: str) -> None:
        if build == self._build:
            self._end_unless_it_publishes()

    def note(self, build: str) -> str:
        return ""

    def begin_stop(self) -> None:
        """The build under way is given back: another server takes it. One that is being published comes to its end."""
        self._stopping = True
        self._end_unless_it_publishes()

    async def stop(self) -> None:
        self.begin_stop()
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=_PUBLISHES_WITHIN_S)
        if not done and self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
