"""Whether somebody is at a build: who is says so again and again, and who is not heard of for long is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.builds.shared.records import Records, Seen

__all__ = ["SILENT_S", "Silence"]

SILENT_S = 60.0
"""Six beats of `app.builds.shared.recorder`."""


class Silence:
    """Of builds as one process sees them: by its own clock, from its own first look on."""

    def __init__(
        self, records: Records, silent_s: float = SILENT_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._records, self._silent_s, self._now_s = records, silent_s, now_s
        self._lives: dict[str, tuple[tuple[str, str], float]] = {}

    def look(self, active: Sequence[Seen]) -> None:
        """These are all that there are."""
        self._lives = {seen.id: self._life(seen) for seen in active}

    def _life(self, seen: Seen) -> tuple[tuple[str, str], float]:
        """What was seen of it last, and since when that is all."""
        known = self._lives.get(seen.id)
        return known if known is not None and known[0] == seen.life else (seen.life, self._now_s())

    async def is_free(self, seen: Seen) -> bool:
        """Nobody has claimed it, or who has it gave it back, or is silent. Of one that was among the last looked at."""
        if not seen.claims or self._now_s() - self._lives[seen.id][1] > self._silent_s:
            return True
        note = await self._records.note(seen)
        return seen.has_begun and not note.by and note.claim == seen.claims
