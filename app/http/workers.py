"""Threads for what would hold up the event loop: packing, unpacking and decoding large bodies.

zlib lets go of the interpreter; who decodes must do so itself, piece by piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["INLINE_BYTES", "Workers"]

INLINE_BYTES = 1_048_576
"""Up to so many bytes, in or out, the loop does it itself: some milliseconds, and cheaper than a thread."""
_THREADS = 2  # more would take the machine from the batches
Result = TypeVar("Result")


class Workers:
    """A few threads of their own: large bodies may not hold up loads or the metrics page, which use the loop's."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, "coding")
        self.busy = 0
        """Works begun and not yet told of."""

    def run(self, work: Callable[[], Result], done: Callable[[Result | BaseException], None]) -> None:
        """Run `work` in a thread, then `done` with its result or its exception on the loop."""

        def told(future: asyncio.Future[Result]) -> None:
            self.busy -= 1
            if not future.cancelled():  # only by a loop that is ending: nobody is there to be told
                error = future.exception()
                done(future.result() if error is None else error)

        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self.busy += 1
        future.add_done_callback(told)

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
