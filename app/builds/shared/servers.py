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
from app.store.errors import StoreError

__all__ = ["ServerRunner"]

log = logging.getLogger(__name__)
SILENT_S = 60.0
"""Who has a build and says nothing for so long is taken for gone: six beats."""


class ServerRunner:
    """Satisfies `app.builds.shared.builds.Runner`. A try belongs to who made its claim: the store lets one make it."""

    def __init__(
        self, records: Records, work: CarriedWork, name: Name, scratch: Path, wake: Callable[[], None],
        silent_s: float = SILENT_S, now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`wake` is told when there is time for another build."""
        self._records, self._work, self._name, self._scratch, self._wake = records, work, name, scratch, wake
        self._silent_s, self._now_s = silent_s, now_s
        self._task: asyncio.Task[None] | None = None
        self._build, self._publishes = "", False
        self._lives: dict[str, tuple[tuple[str, str], float]] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        return int(self._task is not None)

    async def start(self) -> None:
        """What an earlier process left is taken up at once where it had the same folder, else found by its silence."""
        await asyncio.to_thread(self._name.take)

    async def look(self, active: Sequence[Seen]) -> None:
        """Take the oldest that is free, if this server has time."""
        self._lives = {seen.id: self._life(seen) for seen in active}
        if self._build not in self._lives:
            self._end_unless_it_publishes()  # another server was told to cancel it, or it was removed
        for seen in active:
            if self._task is not None or self._stopping:
                return
            if await self._is_free(seen) and await self._records.claim(seen.id, seen.claims + 1, self._name.own):
                self._begin(seen, seen.claims + 1)

    def _life(self, seen: Seen) -> tuple[tuple[str, str], float]:
        """What was seen of it last, and since when that is all."""
        known = self._lives.get(seen.id)
        return known if known is not None and known[0] == seen.life else (seen.life, self._now_s())

    async def _is_free(self, seen: Seen) -> bool:
        """Nobody has it, it was given back, or who has it is gone."""
        if not seen.claims:
            return True
        _, since_s = self._lives[seen.id]
        if self._now_s() - since_s > self._silent_s:
            log.warning("build %s is taken over: nothing was heard of it for %g s", seen.id, self._silent_s)
            return True
        if self._name.before and await self._records.claimed_by(seen) == self._name.before:
            return True
        note = await self._records.note(seen)
        return seen.has_begun and not note.by and note.claim == seen.claims

    def _begin(self, seen: Seen, number: int) -> None:
        self._build, self._publishes = seen.id, False
        self._task = asyncio.get_running_loop().create_task(self._carry(seen, number))

    async def _carry(self, seen: Seen, number: int) -> None:
        try:
            await carry_out(
                self._records, self._work, seen, number, self._name.own, self._scratch, self._note_publishing
            )
        except StoreError as error:
            log.warning("how build %s goes on cannot be stored, it is tried again: %s", seen.id, error)
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
        """The build under way is given back: another server takes it."""
        self._stopping = True
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()

    async def stop(self) -> None:
        self.begin_stop()
        if self._task is not None:
            await asyncio.wait({self._task})
        self._name.release()
