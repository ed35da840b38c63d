"""Servers on loopback that answer as a test says, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from app.bench.driver import Address

__all__ = ["OK", "Answer", "reply", "served"]

Answer = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]
"""Called with the request's number (of the server), its body, and where to write."""


def reply(body: bytes = b"ok", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


OK = reply()


@contextlib.asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[Address]:
    """The address of a server that gives every request to `answer`."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(found[1]) if found else 0)
                number, count = count, count + 1
                await answer(number, body, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address(*server.sockets[0].getsockname())
