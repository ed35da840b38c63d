"""The body caps of the control plane: a middleware, since FastAPI reads bodies of any size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.http.bodies import announced_bytes
from app.http.errors import too_large
from app.http.held import Hold, Room

__all__ = ["HOLD", "BodyLimit"]

HOLD = "bitserve.hold"
"""Key of a call's scope: its `Hold`, which also counts what the body becomes; released when the call has ended."""

Message = MutableMapping[str, Any]


class BodyLimit:
    """Raises BodyTooLarge or QueueFull inside the route that reads; inference and uploads count for themselves."""

    def __init__(self, app: Callable[..., Awaitable[None]], limit_bytes: int, room: Room) -> None:
        self._app, self._limit_bytes, self._room = app, limit_bytes, room

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http" or scope["path"].endswith(("/infer", "/compile")):
            await self._app(scope, receive, send)
            return
        size, announced = 0, announced_bytes(scope["headers"])
        hold = scope[HOLD] = Hold(self._room)

        async def counted() -> Message:
            nonlocal size
            if size == 0 and announced <= self._limit_bytes:
                hold.check(announced)
            message = await receive()
            part_bytes = len(message.get("body", b""))
            size += part_bytes
            if size > self._limit_bytes:
                raise too_large(self._limit_bytes)
            hold.take(part_bytes)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            hold.release()
