"""Requests to a server on loopback, at their own times whether or not answers keep up, or as fast as they are answered.

Latency counts from when a request was due, not from when it could be sent: a server that falls behind is not given
the time that it makes its clients wait (no coordinated omission). Connections are opened as needed, up to a limit; what
finds none waits for one, and that wait counts too.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httptools
import numpy as np

from app.tune.inputs import Pieces, Requests

__all__ = ["Replayed", "replay", "run", "saturate"]

_OPENED_FIRST = 16
_LEAD_S = 0.02
_GRACE_S = 10.0
"""How long after the last request was due an answer may come; later ones count as failures."""
_OK = 200
_KEPT_BYTES = 500
Ended = Callable[[int, bytes], None]
"""Called with the status (0 = the connection was lost) and, of an error, the beginning of its body."""


@dataclass(frozen=True)
class Replayed:
    """`latencies_ms`: float64, of the answers with status 200, in order of arrival. `why` says how the first of the
    failures failed. `late_ms`: how late the requests were sent at the 99th percentile, connections waited for included.
    """

    latencies_ms: np.ndarray
    failures: int
    why: str
    rows: int
    seconds: float
    late_ms: float


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on a loop whose timers are exact: epoll's are rounded up to whole milliseconds, select's are not."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(work)


async def replay(port: int, requests: Requests, due_s: np.ndarray, connections: int) -> Replayed:
    """Send request i at `due_s[i]` seconds from now; ends when all are answered, or some seconds after the last."""
    loop, count = asyncio.get_running_loop(), len(due_s)
    answered_s, sent_s, failed, whys = np.full(count, np.nan), np.full(count, np.nan), 0, [""]
    left, all_answered = count, asyncio.Event()

    def ended(index: int, status: int, body: bytes) -> None:
        nonlocal failed, left
        left -= 1
        if status == _OK:
            answered_s[index] = loop.time()
        else:
            failed += 1
            whys[0] = whys[0] or (f"{status} {body.decode('utf-8', 'replace')}" if status else "a connection was lost")
        if not left:
            all_answered.set()

    async with _pool(port, connections) as pool:
        start_s = loop.time() + _LEAD_S
        for index, moment in enumerate((start_s + due_s).tolist()):
            await asyncio.sleep(max(0.0, moment - loop.time()))
            pool.send(requests.pieces(index), _Pending(index, sent_s, ended))
        try:
            await asyncio.wait_for(all_answered.wait(), _GRACE_S)
        except TimeoutError:
            whys[0] = whys[0] or f"no answer within {_GRACE_S:g} s"
        span_s = loop.time() - start_s
    is_ok = ~np.isnan(answered_s)
    latencies_ms = (answered_s - start_s - due_s)[is_ok] * 1000
    rows = int(np.array([requests.rows[index % len(requests.rows)] for index in np.flatnonzero(is_ok).tolist()]).sum())
    late_s = (sent_s - start_s - due_s)[~np.isnan(sent_s)]
    late_ms = float(np.percentile(late_s, 99) * 1000) if late_s.size else 0.0
    return Replayed(latencies_ms, count - int(is_ok.sum()), whys[0], rows, span_s, late_ms)


async def saturate(port: int, requests: Requests, in_flight: int, seconds: float, connections: int) -> float:
    """Rows a second with `in_flight` requests always under way. One that fails is not sent again."""
    loop = asyncio.get_running_loop()
    async with _pool(port, connections) as pool:
        rows = sent = under_way = 0
        idle = asyncio.Event()
        start_s = loop.time()
        until_s = start_s + seconds

        def send() -> None:
            nonlocal sent, under_way
            index, sent, under_way = sent, sent + 1, under_way + 1
            pool.send(requests.pieces(index), _Pending(index, None, ended))

        def ended(index: int, status: int, body: bytes) -> None:
            nonlocal rows, under_way
            under_way -= 1
            if status == _OK and loop.time() < until_s:
                rows += requests.rows[index % len(requests.rows)]
                send()
            elif not under_way:
                idle.set()

        for _ in range(in_flight):
            send()
        try:
            await asyncio.wait_for(idle.wait(), seconds + _GRACE_S)
        except TimeoutError:
            return 0.0
        return rows / max(1e-9, min(loop.time(), until_s) - start_s)


class _Pending:
    """A request that is to be answered, and where to note when it was sent."""

    __slots__ = ("_ended", "index", "sent_s")

    def __init__(self, index: int, sent_s: np.ndarray | None, ended: Callable[[int, int, bytes], None]) -> None:
        self.index, self.sent_s, self._ended = index, sent_s, ended

    def sent(self, moment_s: float) -> None:
        if self.sent_s is not None:
            self.sent_s[self.index] = moment_s

    def ended(self, status: int, body: bytes) -> None:
        self._ended(self.index, status, body)


class _Pool:
    """Keep-alive connections, each with one request at a time."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most = port, most
        self._loop = asyncio.get_running_loop()
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[Pieces, _Pending]] = deque()
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, pieces: Pieces, pending: _Pending) -> None:
        self._waiting.append((pieces, pending))
        if self._free:
            self._serve(self._free.pop())
        elif len(self._all) + len(self._opening) < self._most:
            self.open()

    def open(self) -> asyncio.Task[None]:
        task = self._loop.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def _open(self) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            if not self._all and not self._closed:  # nothing else would take what waits
                while self._waiting:
                    self._waiting.popleft()[1].ended(0, b"")
            return
        self._all.add(connection)
        self._serve(connection)

    def _serve(self, connection: _Connection) -> None:
        """A connection has nothing to do: the request that waits longest is sent."""
        if self._waiting and not self._closed:
            pieces, pending = self._waiting.popleft()
            pending.sent(self._loop.time())
            connection.send(pieces, pending)
        else:
            self._free.append(connection)

    def finished(self, connection: _Connection) -> None:
        if connection in self._all:
            self._serve(connection)

    def lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._waiting and not self._closed:
            self.open()

    async def close(self) -> None:
        self._closed = True
        for task in self._opening:
            task.cancel()
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def _pool(port: int, most: int) -> AsyncIterator[_Pool]:
    pool = _Pool(port, most)
    try:
        await asyncio.gather(*(pool.open() for _ in range(min(most, _OPENED_FIRST))))
        yield pool
    finally:
        await pool.close()


class _Connection(asyncio.Protocol):
    """One connection. The parser's callbacks are named as httptools asks."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._pending: _Pending | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, pieces: Pieces, pending: _Pending) -> None:
        self._pending = pending
        self._transport.writelines(pieces)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != _OK and len(self._body) < _KEPT_BYTES:
            self._body += body[:_KEPT_BYTES]

    def on_message_complete(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.ended(self._parser.get_status_code(), self._body)
        self._pool.finished(self)

    def connection_lost(self, error: Exception | None) -> None:
        pending, self._pending = self._pending, None
        self._pool.lost(self)
        if pending is not None:
            pending.ended(0, b"")
