"""Whether somebody is at a build: who is says so again and again, and who is not heard of for long is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.builds.shared.records import Records, Seen

__all__ = ["SILENT_S", "Silence"]

SILENT_S = 60.0
"""Six beats of `app.builds.shared.recorder`."""
_LONGEST_GAP_S = 10.0
"""Between two looks, as it counts: while the store is away nobody is heard of, and all may be at work."""


class Silence:
    """Of builds as one process sees them: by its own clock, from its own first look on."""

    def __init__(self, records: Records, now_s: Callable[[], float] = time.monotonic) -> None:
        self._records, self._now_s = records, now_s
        self._looked_s = now_s()
        self._lives: dict[str, tuple[tuple[str, str], float]] = {}

    def look(self, active: Sequence[Seen]) -> None:
        """These are all that there are."""
        now_s = self._now_s()
        gap_s, self._looked_s = min(now_s - self._looked_s, _LONGEST_GAP_S), now_s
        self._lives = {seen.id: self._life(seen, gap_s) for seen in active}

    def _life(self, seen: Seen, gap_s: float) -> tuple[tuple[str, str], float]:
        """What was seen of it last, and for how long that is all."""
        known = self._lives.get(seen.id)
        return (seen.life, known[1] + gap_s) if known is not None and known[0] == seen.life else (seen.life, 0.0)

    async def is_free(self, seen: Seen) -> bool:
        """Nobody has claimed it, or who has it gave it back, or is silent. Of one that was among the last looked at."""
        if not seen.claims or self._lives[seen.id][1] > SILENT_S:
            return True
        note = await self._records.note(seen)
        return seen.has_begun and not note.by and note.claim == seen.claims
