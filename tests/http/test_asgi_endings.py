"""The raw ASGI face, called as a server calls it: however a call ends, nothing of it stays counted or queued."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.http.asgi import InferAsgi
from app.http.infer import InferHandler
from app.main import create_app
from app.settings import Settings
from tests.hostile.wire import json_body

BODY = json_body()
HALF = {"type": "http.request", "body": BODY[:40], "more_body": True}
REST = {"type": "http.request", "body": BODY[40:], "more_body": False}
GONE = {"type": "http.disconnect"}
Message = dict[str, Any]


class Lost(Exception):
    """What a server may raise out of `receive`."""


class Caller:
    """`messages` one after the other (an exception is raised), then silence."""

    def __init__(self, *messages: Message | Exception) -> None:
        self._messages = list(messages)
        self.silent = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self._messages:
            self.silent.set()
            await asyncio.Event().wait()
        message = self._messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def with_handler(repository: Path, test: Callable[[InferHandler], Awaitable[None]]) -> None:
    async def run() -> None:
        app = create_app(Settings(repository=repository, watch_s=0, delay_scheduler=2))
        async with app.router.lifespan_context(app):
            handler: InferHandler = app.state.handler
            async with asyncio.timeout(60):
                while "m" not in {endpoint.model for endpoint in handler.gateway.registry.endpoints()}:
                    await asyncio.sleep(0.005)
            await test(handler)

    asyncio.run(run())


def call(handler: InferHandler, caller: Caller, *headers: tuple[bytes, bytes]) -> asyncio.Task[None]:
    scope: Message = {"type": "http", "path_params": {"model": "m"}, "headers": list(headers)}
    return asyncio.create_task(InferAsgi(handler)(scope, caller.receive, caller.send))


@pytest.mark.parametrize(
    ("messages", "raised"),
    [
        ([HALF, GONE], None),
        ([HALF, Lost()], Lost),
        ([HALF, REST, GONE], None),
        ([HALF, REST, Lost()], Lost),
    ],
    ids=["leaves in the body", "is lost in the body", "leaves while it waits", "is lost while it waits"],
)
def test_an_end_before_the_answer(wire_repository: Path, messages: list[Any], raised: type[Exception] | None) -> None:
    async def test(handler: InferHandler) -> None:
        caller = Caller(*messages)
        (end,) = await asyncio.gather(call(handler, caller), return_exceptions=True)
        assert (type(end) if end else None, caller.sent) == (raised, [])
        assert (handler.room.held_bytes, handler.in_flight) == (0, 0)

    with_handler(wire_repository, test)


@pytest.mark.parametrize("messages", [[HALF], [HALF, REST]], ids=["in the body", "while it waits"])
def test_a_call_that_is_cancelled(wire_repository: Path, messages: list[Message]) -> None:
    async def test(handler: InferHandler) -> None:
        caller = Caller(*messages)
        task = call(handler, caller)
        await caller.silent.wait()
        assert handler.room.held_bytes == sum(len(message["body"]) for message in messages)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (handler.room.held_bytes, handler.in_flight, caller.sent) == (0, 0, [])

    with_handler(wire_repository, test)


def test_an_answer_is_the_end_too(wire_repository: Path) -> None:
    async def test(handler: InferHandler) -> None:
        callers = [Caller(HALF, REST), Caller(HALF, REST)]
        await asyncio.gather(*(call(handler, caller) for caller in callers))
        assert [caller.sent[0]["status"] for caller in callers] == [200, 200]
        assert (handler.room.held_bytes, handler.in_flight) == (0, 0)

    with_handler(wire_repository, test)


def test_what_is_announced_without_room_is_not_asked_for(wire_repository: Path) -> None:
    async def test(handler: InferHandler) -> None:
        handler.room.limit_bytes = 2 * len(BODY)
        first, second = Caller(HALF), Caller(HALF, REST)
        waiting = call(handler, first)
        await first.silent.wait()
        await call(handler, second, (b"content-length", b"%d" % (3 * len(BODY))))
        assert second.sent[0]["status"] == 503
        assert (b"retry-after", b"1") in second.sent[0]["headers"]
        assert not second.silent.is_set()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert handler.room.held_bytes == 0

    with_handler(wire_repository, test)
