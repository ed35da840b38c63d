"""The body cap of the control plane: a middleware, since FastAPI reads bodies of any size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.http.errors import too_large

__all__ = ["BodyLimit"]

Message = MutableMapping[str, Any]


class BodyLimit:
    """Raises BodyTooLarge inside the route that reads too much; inference calls and uploads count for themselves."""

    def __init__(self, app: Callable[..., Awaitable[None]], limit_bytes: int) -> None:
        self._app, self._limit_bytes = app, limit_bytes

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http" or scope["path"].endswith(("/infer", "/compile")):
            await self._app(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit_bytes:
                raise too_large(self._limit_bytes)
            return message

        await self._app(scope, counted, send)
