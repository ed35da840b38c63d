"""Sessions that are opened and closed beside the loop: what a server that stops waits for, a while."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from engines.runtime.session import Session

__all__ = ["Closing"]

_LONGEST_S = 1.0
"""One that hangs is left to the end of the process."""


class Closing:
    """Each session is closed in a thread of its own, for a launch that hangs would keep its close waiting."""

    def __init__(self) -> None:
        self._opening: set[asyncio.Future[Session]] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self, session: Session) -> None:
        """From any thread."""

        def close() -> None:
            try:
                session.close()
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=close, name="close-session", daemon=True)
        with self._lock:
            thread.start()
            self._threads.add(thread)

    async def opened(self, work: Callable[[], Session]) -> Session:
        """Open one in a thread; where nobody waits for it any more, it is closed when it comes."""
        opening = asyncio.ensure_future(asyncio.to_thread(work))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unwanted)
            raise

    def _close_unwanted(self, opening: asyncio.Future[Session]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self.start(opening.result())

    async def wait(self) -> None:
        """Until all are closed, and those that are being opened for nobody, too."""
        end_s = time.monotonic() + _LONGEST_S
        if self._opening:
            await asyncio.wait(list(self._opening), timeout=_LONGEST_S)
        await asyncio.to_thread(self._join, end_s)

    def _join(self, end_s: float) -> None:
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
