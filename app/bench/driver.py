"""Requests to one server over raw HTTP on kept connections: the load of `bitserve bench` and of `bitserve tune`.

It does per request only what a measurement needs: prebuilt bytes go out, httptools finds where an answer ends, its
check and two readings of the clock follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from app.bench.alarm import Alarm
from app.bench.arrivals import Open, Plan
from app.bench.connection import Connection, Pieces
from app.bench.seen import Seen

__all__ = ["Address", "Driver", "Source", "run"]

_TICK_S = 0.1
_RETRY_S = 0.02, 0.5
"""The least and the most pause before a connection is tried again."""
_OPENED_AT_ONCE = 32
_OK = 200
_SAID_CHARACTERS = 300
_NS = 1_000_000_000
Check = Callable[[int, bytes], str]
"""Of the request's number and the answer's body: what is wrong with it, in words; empty where nothing is."""


class Address(NamedTuple):
    """Of TCP."""

    host: str
    port: int


class Source(Protocol):
    """The requests of a run. Number i has `rows[i % len(rows)]` rows."""

    rows: Sequence[int]

    def pieces(self, index: int) -> Pieces:
        """Its bytes, head and body."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def right(index: int, body: bytes) -> str:
    """The check that finds every answer right."""
    return ""


class Driver:
    """At most `connections` of them; they stay open from run to run. One that is lost is opened anew.

    A server that takes none for `gone_s`, while none is open, is gone, which ends the run.
    """

    def __init__(
        self,
        address: Address,
        source: Source,
        connections: int,
        timeout_s: float,
        check: Check = right,
        gone_s: float = 3.0,
    ) -> None:
        self._address, self._source, self._most, self._check = address, source, connections, check
        self._timeout_ns, self._gone_ns = round(timeout_s * _NS), round(gone_s * _NS)
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause_s, self._alone_since_ns = 0.0, 0
        self._plan: Plan | None = None
        self._alarm: Alarm | None = None
        self._seen = Seen()
        self._begun_ns = self._window_end_ns = 0
        self._done = asyncio.Event()
        self._closed = self.gone = False

    @property
    def opened(self) -> int:
        """Connections that are open."""
        return len(self._all)

    # -- runs --------------------------------------------------------------------------------------------------------

    async def connect(self, count: int) -> None:
        """Try once to open so many in all; a run goes on trying."""
        missing = min(count, self._most) - self._opens()
        for done in range(0, missing, _OPENED_AT_ONCE):
            await asyncio.gather(*(self._open() for _ in range(min(missing - done, _OPENED_AT_ONCE))))

    async def run(self, plan: Plan, seen: Seen, tell: Callable[[], None] = lambda: None) -> float:
        """Until every request of the plan has ended; `tell` is called ten times a second. Seconds that it took.

        The window's seconds where the plan has one and came to its end, else those to the last answer.
        """
        self._seen, self.gone = seen, False
        self._done.clear()
        await self.connect(_OPENED_AT_ONCE if isinstance(plan, Open) else self._most)
        self._plan = plan
        self._begun_ns = self._alone_since_ns = time.monotonic_ns()
        plan.begin(self._begun_ns)
        self._window_end_ns = plan.window_end_ns or 1 << 62
        if isinstance(plan, Open):
            self._alarm = Alarm(self._due)
            self._due()
        else:
            self._fill()
        try:
            while not self._done.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._done.wait(), _TICK_S)
                self._tick(time.monotonic_ns())
                tell()
        finally:
            self._plan = None
            if self._alarm is not None:
                self._alarm.close()
                self._alarm = None
        if isinstance(plan, Open) and plan.unsent:
            seen.failed("not sent", "no connection was free; the server did not keep up", plan.unsent)
        return (min(time.monotonic_ns(), self._window_end_ns) - self._begun_ns) / _NS

    def stop(self) -> None:
        """No more requests; `run` returns once those under way have ended, or soon."""
        if self._plan is not None:
            self._plan.stop()
            self._timeout_ns = min(self._timeout_ns, _NS)
            self._settle(time.monotonic_ns())

    async def close(self) -> None:
        """Ends the connections."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)

    # -- what a request meets ----------------------------------------------------------------------------------------

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """The request under way has its answer."""
        now_ns = time.monotonic_ns()
        index, connection.index = connection.index, -1
        if index < 0:  # nobody asked: a server that is full says so as it closes
            if connection.why:
                connection.abort()
            return
        self._record(index, now_ns - connection.begun_ns, now_ns, status, body)
        if connection.why:
            connection.abort()
        else:
            self._next(connection, now_ns)

    def _record(self, index: int, latency_ns: int, now_ns: int, status: int, body: bytes) -> None:
        seen = self._seen
        if status != _OK:
            seen.failed(str(status), _said(body))
            return
        wrong = self._check(index, body)
        if wrong:
            seen.failed("wrong answer", wrong)
            return
        rows = self._source.rows
        count = rows[index % len(rows)]
        seen.latencies_ns.append(latency_ns)
        seen.rows += count
        if now_ns <= self._window_end_ns:
            seen.in_time += 1
            seen.in_time_rows += count

    def _next(self, connection: Connection, now_ns: int) -> None:
        """A connection has nothing to do."""
        plan = self._plan
        begun_ns = plan.take(now_ns) if plan is not None else None
        if plan is None or begun_ns is None:
            self._free.append(connection)
            self._settle(now_ns)
            return
        index = plan.taken - 1
        connection.send(self._source.pieces(index), index, begun_ns, now_ns)

    def lost(self, connection: Connection, why: str) -> None:
        """What was under way on it has failed; another one takes its place if there is need."""
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if not self._all:
            self._alone_since_ns = time.monotonic_ns()
        if connection.index >= 0:
            self._seen.failed("timeout" if why == "timeout" else "connection lost", "" if why == "timeout" else why)
        self._pause_s = 0.0 if connection.has_served else self._longer()
        if self._plan is not None and not self._closed:
            self._fill()
            self._settle(time.monotonic_ns())

    # -- connections -------------------------------------------------------------------------------------------------

    def _opens(self) -> int:
        return len(self._all) + len(self._opening)

    def _longer(self) -> float:
        least, most = _RETRY_S
        return min(most, max(least, 2 * self._pause_s))

    def _fill(self) -> None:
        """Give work to what is free, and open what is missing: all at once, or as many as requests wait."""
        now_ns = time.monotonic_ns()
        for connection in self._free[:]:
            self._free.remove(connection)
            self._next(connection, now_ns)
        plan = self._plan
        if plan is None or plan.is_over(now_ns):
            return
        wanted = plan.backlog(now_ns) - len(self._opening) if isinstance(plan, Open) else self._most
        for _ in range(min(self._most - self._opens(), wanted, _OPENED_AT_ONCE) if not self._closed else 0):
            task = asyncio.get_running_loop().create_task(self._open(self._pause_s))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, pause_s: float = 0.0) -> None:
        await asyncio.sleep(pause_s)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self), *self._address)
        except OSError as error:
            self._pause_s = self._longer()
            self._seen.failed("no connection", error.strerror or str(error))
            return
        self._all.add(connection)
        self._next(connection, time.monotonic_ns())

    # -- time --------------------------------------------------------------------------------------------------------

    def _due(self) -> None:
        """Requests of an open loop are due."""
        now_ns, plan = time.monotonic_ns(), self._plan
        if not isinstance(plan, Open):
            return
        self._seen.lates_ns.extend(plan.notice(now_ns))
        while self._free:
            begun_ns = plan.take(now_ns)
            if begun_ns is None:
                break
            index = plan.taken - 1
            self._free.pop().send(self._source.pieces(index), index, begun_ns, now_ns)
        if plan.backlog(now_ns) > len(self._opening) and self._opens() < self._most:
            self._fill()
        next_ns = plan.next_due_ns()
        if next_ns is not None and self._alarm is not None:
            self._alarm.set(next_ns)

    def _tick(self, now_ns: int) -> None:
        """Requests that took too long fail; a server that is gone ends the run; lost connections are tried again."""
        for connection in list(self._all):
            if connection.index >= 0 and now_ns - connection.sent_ns > self._timeout_ns:
                connection.abort("timeout")
        plan = self._plan
        if plan is None:
            return
        if not self._all and now_ns - self._alone_since_ns > self._gone_ns:
            self.gone = True
            plan.stop()
        if self._all:
            self._alone_since_ns = now_ns
        if not plan.is_over(now_ns) and self._opens() < self._most:
            self._fill()
        self._settle(now_ns)

    def _settle(self, now_ns: int) -> None:
        """The run is over when nothing will be sent and nothing is under way."""
        if self._plan is not None and self._plan.is_over(now_ns) and len(self._free) == len(self._all):
            self._done.set()


def _said(body: bytes) -> str:
    """The server's own words about an error, or the beginning of what it sent."""
    try:
        found = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        found = body[:_SAID_CHARACTERS].decode("utf-8", "replace")
    return str(found)[:_SAID_CHARACTERS]
