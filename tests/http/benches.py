"""The application on a test's own loop, with threads that a test holds, and a cycle without a connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from app.http.answers import Answer
from app.http.cycle import FastCycle
from app.http.infer import Head, InferHandler
from app.main import create_app
from app.serving.ticket import Outcome
from app.settings import Settings
from tests.support.servers import TOKEN

__all__ = ["INFER", "Bench", "Wire", "on_the_wire", "until", "with_bench"]

INFER = "/v2/models/m/infer"


class Bench:
    """The application on this loop, a client of it, and its threads held until `let_go`."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.app, self.client = app, client
        self.handler: InferHandler = app.state.handler
        self._gate = threading.Event()

    def serves(self, *models: str) -> bool:
        return set(models) <= {endpoint.model for endpoint in self.handler.gateway.registry.endpoints()}

    def hold(self) -> None:
        for _ in range(4):
            self.handler.workers.run(self._gate.wait, lambda _: None)

    @property
    def held(self) -> int:
        """Works that wait behind the held ones."""
        return self.handler.workers.busy - 4

    def let_go(self) -> None:
        self._gate.set()

    def ask(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = INFER
    ) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post(path, content=body, headers=headers))

    def cancelled(self) -> int:
        return self.handler.gateway.resolve("m").stats.request_ns[Outcome.CANCELLED].count


async def until(met: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(repository: Path) -> AsyncIterator[Bench]:
    app = create_app(Settings(repository=repository, watch_s=0, admin_token=SecretStr(TOKEN)))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        bench = Bench(app, client)
        await until(lambda: bench.serves(*(path.parent.name for path in repository.glob("*/1"))))
        try:
            yield bench
        finally:
            bench.let_go()


def with_bench(repository: Path, test: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving(repository) as bench:
            await test(bench)

    asyncio.run(run())


class Wire:
    """A connection that remembers what is written on it."""

    def __init__(self, handler: InferHandler) -> None:
        self.handler = handler
        self.answers: list[Answer] = []

    def write_answer(self, answer: Answer, *, keep_alive: bool) -> None:
        self.answers.append(answer)

    def ask_for_body(self) -> None: ...

    def end_with(self, answer: Answer) -> None: ...


def on_the_wire(bench: Bench, body: bytes, coding: bytes = b"", model: str = "m") -> tuple[FastCycle, Wire]:
    """The protocol's own cycle, with a whole body."""
    wire = Wire(bench.handler)
    head = Head(model, None, None, coding, b"", b"id")
    cycle = FastCycle(wire, head, keep_alive=True, expects_continue=False, announced_bytes=len(body))
    cycle.activate()
    cycle.add(body)
    cycle.finish()
    return cycle, wire
