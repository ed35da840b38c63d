"""Sessions that are opened and closed beside the loop: what a server that stops waits for, a while."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from engines.runtime.session import Session

__all__ = ["Closing"]

_LONGEST_S = 1.0
"""One that hangs is left to the end of the process."""
_MOST_OPENING = 6
"""At once: a library takes several times a plan's memory while it imports it."""


class Closing:
    """Each session is closed in a thread of its own, for a launch that hangs would keep its close waiting."""

    def __init__(self) -> None:
        self._opening: set[asyncio.Future[Session]] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._room = asyncio.Semaphore(_MOST_OPENING)

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
        await self._room.acquire()
        opening = _in_a_thread(work)
        opening.add_done_callback(lambda _: self._room.release())
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


def _in_a_thread(work: Callable[[], Session]) -> asyncio.Future[Session]:
    """One that does not keep the process: a library that hangs while it imports a plan would."""
    loop = asyncio.get_running_loop()
    opening: asyncio.Future[Session] = loop.create_future()

    def settle(session: Session | None, error: BaseException | None) -> None:
        if error is not None:
            opening.set_exception(error)
        elif session is not None:
            opening.set_result(session)

    def run() -> None:
        session, error = None, None
        try:
            session = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended: so does the process
            loop.call_soon_threadsafe(settle, session, error)

    threading.Thread(target=run, name="open-session", daemon=True).start()
    return opening
