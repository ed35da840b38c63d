"""The body caps of the control plane: a middleware, since FastAPI reads bodies of any size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.http.bodies import announced_bytes
from app.http.errors import BodyTooLarge, too_large
from app.http.held import Hold, Room

__all__ = ["HOLD", "LIMIT", "BodyLimit"]

HOLD = "bitserve.hold"
"""Key of a call's scope: its `Hold`, which also counts what the body becomes; released when the call has ended."""

LIMIT = "bitserve.limit"
"""Key of a call's scope: how many bytes its body may have, decompressed, too."""

_MAX_CONTROL_BYTES = 1_048_576
"""Of a body that brings no files: it is parsed on the event loop."""

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
        limit_bytes = self._limit_bytes
        if not scope["path"].endswith("/load"):
            limit_bytes = min(limit_bytes, _MAX_CONTROL_BYTES)
        scope[LIMIT] = limit_bytes
        hold = scope[HOLD] = Hold(self._room)

        def too_many() -> BodyTooLarge:
            return too_large(limit_bytes) if limit_bytes == self._limit_bytes else _over_control()

        async def counted() -> Message:
            nonlocal size
            if announced > limit_bytes:
                raise too_many()
            if size == 0:
                hold.check(announced)
            message = await receive()
            part_bytes = len(message.get("body", b""))
            size += part_bytes
            if size > limit_bytes:
                raise too_many()
            hold.take(part_bytes)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            hold.release()


def _over_control() -> BodyTooLarge:
    return BodyTooLarge(f"the request body has more than {_MAX_CONTROL_BYTES} bytes; only a load call may bring more")
