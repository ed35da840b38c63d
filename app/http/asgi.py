"""Inference calls as a raw ASGI application, for other servers than uvicorn with our protocol, and in-process tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.http.answers import Answer
from app.http.bodies import Body, add_part, announced_bytes, whole
from app.http.errors import HttpError, too_large
from app.http.held import Hold
from app.http.infer import Exchange, Head, InferHandler
from app.serving.errors import ServingError

__all__ = ["InferAsgi"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class InferAsgi:
    """One call of it is one inference call. What it holds of a body is counted, and released on every way out."""

    def __init__(self, handler: InferHandler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named: dict[str, str] = scope["path_params"]  # of the route, which has decoded what was percent-encoded
        head = Head.of(named["model"], named.get("version"), scope["headers"])
        hold = Hold(self._handler.room)
        try:
            answer = await self._answer(head, announced_bytes(scope["headers"]), hold, receive)
        finally:
            hold.release()
        if answer is None:
            return
        status, headers, payload = answer
        length = (b"content-length", str(len(payload)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": payload})

    async def _answer(self, head: Head, announced: int, hold: Hold, receive: Receive) -> Answer | None:
        """The answer, or None where the client has gone."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(given: Answer) -> None:
            if not answer.done():
                answer.set_result(given)

        try:
            body = await self._body(announced, hold, receive)
        except (HttpError, ServingError) as error:
            self._handler.refuse(head, error, hold, reply)
            return answer.result()
        if body is None:
            return None
        exchange = self._handler.start(head, body, hold, reply)
        del body  # the exchange has it, for as long as it needs it
        if exchange is not None and not await _wait(answer, receive, exchange):
            return None
        return answer.result()

    async def _body(self, announced: int, hold: Hold, receive: Receive) -> Body | None:
        """The whole body; None where the client left before its end. Raises BodyTooLarge or QueueFull.

        One that is announced as too large is not asked for.
        """
        limit_bytes = self._handler.max_body_bytes
        if announced > limit_bytes:
            raise too_large(limit_bytes)
        hold.check(announced)
        parts: list[Body] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if hold.size_bytes + len(part) > limit_bytes:
                raise too_large(limit_bytes)
            hold.take(len(part))
            add_part(parts, part)
            if not message.get("more_body", False):
                return whole(parts)


async def _wait(answer: asyncio.Future[Answer], receive: Receive, exchange: Exchange) -> bool:
    """Wait for the answer or the client's departure; False for the latter. However it ends, the call has ended."""
    gone: asyncio.Future[Any] = asyncio.ensure_future(receive())
    try:
        while not answer.done():
            waiting: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return True
            if gone.result()["type"] == "http.disconnect":
                return False
            gone = asyncio.ensure_future(receive())
        return True
    finally:
        gone.cancel()
        if not answer.done():
            exchange.cancel()
