"""The first process of a server with front ends: starts the others, starts them again, ends them; serves nothing.

It stays small and has no thread, so that a fork of it is a fresh start.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.front.memory import ProcessCells, SharedMemory
from app.front.processes import DRAIN, LEAVE, UP, Addresses, begin_child, run_engine, run_front_end
from app.listening import BACKLOG, listen_shared, log_listening
from app.settings import Settings

__all__ = ["supervise"]

log = logging.getLogger(__name__)
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, UP}
_STEADY_S = 5.0
"""A process that has run for so long is started again at once; one that ends before waits, ever longer."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_SPARE_S = 5.0
"""More than a drain may take: then whoever is still there is killed."""


@dataclass
class _Child:
    """One of the processes. `pid` 0: it does not run, and starts at `due_s`."""

    name: str
    run: Callable[[], None]
    cells: ProcessCells
    pid: int = 0
    started_s: float = 0.0
    due_s: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)


class _Supervisor:
    def __init__(self, settings: Settings) -> None:
        from app.auth import with_admin_token

        self._shares = listen_shared(settings.host, settings.port, settings.front_ends)
        self._settings = with_admin_token(settings)
        name = f"\0bitserve-{os.getpid()}-{secrets.token_hex(8)}"
        self._addresses = Addresses(f"{name}-links", f"{name}-http")
        self._listeners = [_listen_unix(address) for address in self._addresses]
        self._shared = SharedMemory(settings.front_ends, max(settings.max_held_bytes, settings.max_body_bytes))
        self._engine = _Child("the engine process", self._run_engine, self._shared.cells[-1])
        self._children = [self._engine, *(self._front_end(at) for at in range(settings.front_ends))]
        self._announced = False
        self._stop_until_s = 0.0
        self._code = 0

    # -- children ------------------------------------------------------------------------------------------------

    def _front_end(self, index: int) -> _Child:
        def run() -> None:
            run_front_end(self._settings, self._shared, index, self._own_sockets(index), self._addresses)

        return _Child(f"front end {index + 1}", run, self._shared.cells[index])

    def _own_sockets(self, index: int) -> list[socket.socket]:
        for listener in self._listeners:
            listener.close()
        for at, share in enumerate(self._shares):
            if at != index:
                for made in share:
                    made.close()
        return self._shares[index]

    def _run_engine(self) -> None:
        for share in self._shares:
            for made in share:
                made.close()
        run_engine(self._settings, self._shared, *self._listeners)

    def _start(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        supervisor = os.getpid()
        child.started_s = time.monotonic()
        try:
            child.pid = os.fork()
        except OSError as error:  # of memory or processes, perhaps just when there was too little for the last one
            child.due_s = child.started_s + _LONGEST_PAUSE_S
            log.error("%s cannot be started: %s", child.name, error.strerror)
            return
        if child.pid:
            return
        code = 1
        try:
            begin_child(supervisor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            child.run()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            log.exception("%s has failed", child.name)
        finally:
            sys.stderr.flush()
            os._exit(code)  # the rest of this stack is the supervisor's

    def _reap(self) -> None:
        while any(child.pid for child in self._children):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        child.pid = 0
        child.cells.clear()  # what it held and had open is gone with it
        if self._stop_until_s:
            self._code = self._code or abs(code)
            return
        if not self._announced and child is self._engine:  # it could not begin: the next one could not either
            self._code = abs(code) or 1
            self._stop(DRAIN)
            return
        now_s = time.monotonic()
        steady = now_s - child.started_s >= _STEADY_S
        child.pause_s = _FIRST_PAUSE_S if steady else min(2 * child.pause_s, _LONGEST_PAUSE_S)
        child.due_s = now_s if steady else now_s + child.pause_s
        how = f"was killed by signal {-code}" if code < 0 else f"has ended with {code}"
        log.error("%s %s; it is started again", child.name, how)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until all have ended; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            now_s = time.monotonic()
            if self._stop_until_s:
                if not any(child.pid for child in self._children):
                    log.info("Finished server process [%d]", os.getpid())
                    return self._code
                if now_s > self._stop_until_s:
                    self._tell(signal.SIGKILL)
            else:
                for child in self._children:
                    if not child.pid and now_s >= child.due_s:
                        self._start(child)
            self._heed(self._wait(now_s))

    def _wait(self, now_s: float) -> int:
        """The next signal, 0 where it is time for something else."""
        due = [child.due_s for child in self._children if not child.pid] if not self._stop_until_s else []
        until_s = min(due, default=now_s + 1.0)
        told = signal.sigtimedwait(_SIGNALS, max(0.0, min(1.0, until_s - now_s)))
        return 0 if told is None else told.si_signo

    def _heed(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop(LEAVE if self._stop_until_s else DRAIN)
        elif number == UP and not self._announced and all(cells.up for cells in self._shared.cells[:-1]):
            self._announced = True
            log_listening(self._settings.host, self._shares[0])
        self._reap()

    def _stop(self, word: int) -> None:
        if not self._stop_until_s:
            self._stop_until_s = time.monotonic() + self._settings.drain_s + _SPARE_S
            for made in (made for share in self._shares for made in share):
                made.close()
        self._tell(word)

    def _tell(self, word: int) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, word)


def _listen_unix(address: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(address)
    made.listen(BACKLOG)
    made.setblocking(False)
    return made


def supervise(settings: Settings) -> int:
    """Serve with front ends until SIGTERM or SIGINT; the exit code, after the drain. CannotListen where it cannot."""
    from app.server import prepare_process

    supervisor = _Supervisor(settings)
    prepare_process(settings)
    return supervisor.run()
