"""uvicorn as every process of the server runs it, with a drain that answers what was accepted."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import uvicorn

from app.http.infer import InferHandler
from app.http.protocol import InferProtocol
from app.listening import BACKLOG
from app.logs import configure_logging
from app.settings import Settings
from app.tally import Tally

__all__ = ["SWITCH_INTERVAL_S", "Drain", "DrainingServer", "prepare_process", "protocol_config"]

_TICK_S = 0.1
"""Of uvicorn's main loop: what it decides, it decides so late."""
SWITCH_INTERVAL_S = 0.0005
"""A thread that has a batch's answer waits so long at most for the loop to let go of the interpreter; Python's own 5 ms
are many times what a small model takes.
"""
_CLOSING_S = 0.2
"""What ending takes when nothing is waited for: the pause uvicorn makes once connections are told, and our own end."""


@dataclass(frozen=True)
class Drain:
    """How a server ends: `stop_admitting` may run in a signal's handler, `begin_stop` runs on the loop.

    It ends when `in_flight` is 0, or `seconds` after the first of `signals`.
    """

    seconds: float
    stop_admitting: Callable[[], None]
    in_flight: Callable[[], int]
    begin_stop: Callable[[], None] = lambda: None
    signals: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    leave_signal: int | None = None
    """One that asks for no drain, even where it is the first."""


def prepare_process(settings: Settings) -> None:
    """What holds for every process of the server: its log, and limits of the interpreter and of the system."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logging(settings.log_level)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # connections are bounded by a setting, not by a shell's default
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def protocol_config(
    app: Any, handler: InferHandler, settings: Settings, connections_open: Tally | None = None, *,
    lifespan: Literal["on", "off"] = "on",
) -> uvicorn.Config:  # fmt: skip
    """Uvicorn's configuration; the protocol is ours, as is whatever it would log or limit."""
    protocol = InferProtocol.configure(handler, settings, connections_open)
    return uvicorn.Config(
        app, host=settings.host, port=settings.port, loop="uvloop", http=protocol, ws="none", lifespan=lifespan,
        access_log=False, log_config=None, server_header=False, date_header=False, backlog=BACKLOG,
    )  # fmt: skip


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a drain: stop admitting, answer what was accepted, then close and exit 0."""

    def __init__(self, config: uvicorn.Config, drain: Drain, started: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._drain, self._told = drain, False
        self._started = started
        self._drain_until_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second, or one that says so: leave now."""
        if self._drain_until_s is not None or sig == self._drain.leave_signal:
            self.should_exit = self.force_exit = True
            return
        self._drain_until_s = time.monotonic() + self._drain.seconds
        self._drain.stop_admitting()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which tells nobody where it has not made the sockets."""
        await super().startup(sockets)
        if self.started and self._started is not None:
            self._started()

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until_s is not None and not self.should_exit:
            if not self._told:  # not in the signal's handler, which may interrupt what it would change
                self._told = True
                self._drain.begin_stop()
            left_s = self._drain_until_s - time.monotonic()
            self.should_exit = self._drain.in_flight() == 0 or left_s <= _TICK_S + _CLOSING_S
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but the application is ended in haste, too: a compile is a child process that would live on."""
        if self._drain_until_s is not None:
            left_s = max(0.0, self._drain_until_s - _CLOSING_S - time.monotonic())
            self.config.timeout_graceful_shutdown = left_s  # type: ignore[assignment]  # asyncio takes parts of seconds
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a drained server exits 0 instead of dying of the signal that asked for it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in self._drain.signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
