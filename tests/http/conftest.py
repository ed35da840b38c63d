"""Servers that a module's tests share, and the handler's faces: its own protocol, ASGI on a socket, ASGI in-process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.hostile.wire import AsgiServer, Client, Reply, repository
from tests.simulated.serve import simulated
from tests.support.known_plans import known_plans
from tests.support.servers import ON_GPU, Server, until

BODY_CAP = 300_000


class SocketFace:
    """A server on a socket."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __call__(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with Client(self.server.port) as client:
            client.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            return client.read(head_only=method == "HEAD")


class InProcessFace:
    """The application called through httpx, on a loop in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(60)

    async def _run(self) -> None:
        app = create_app(self._settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as c,
        ):
            self._client = c
            self._ready.set()
            await self._stop.wait()

    def __call__(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        assert self._client is not None
        # httpx would decode a compressed answer; a suite that compares bytes wants it as it was sent
        asked = {"accept-encoding": "identity", **(headers or {})}
        answer: httpx.Response = asyncio.run_coroutine_threadsafe(
            self._raw(self._client.build_request(method, path, content=body, headers=asked)), self._loop
        ).result(60)
        return Reply(answer.status_code, dict(answer.headers), answer.extensions["raw"])

    async def _raw(self, request: httpx.Request) -> httpx.Response:
        assert self._client is not None
        answer = await self._client.send(request, stream=True)
        answer.extensions["raw"] = b"".join([part async for part in answer.aiter_raw()])
        await answer.aclose()
        return answer

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        self._loop.close()


def _all_ready(face: Any) -> bool:
    answer = face("POST", "/v2/repository/index")
    return bool(answer.status == 200 and answer.json()) and all(v["state"] == "READY" for v in answer.json())


@pytest.fixture(scope="module", autouse=True)
def _in_process() -> Iterator[None]:
    """What servers of a suite run on and know, applications in this process do, too."""
    if not ON_GPU:
        with known_plans():
            yield
        return
    with simulated() as gpus:
        yield
    assert not [rule for gpu in gpus for rule in gpu.broken]


@pytest.fixture(scope="session")
def wire_repository() -> Path:
    return repository()


@pytest.fixture(scope="module", params=["protocol", "asgi", "in_process"])
def face(request: pytest.FixtureRequest, wire_repository: Path) -> Iterator[Any]:
    """Calls the application: face(method, path, body, headers) -> Reply. The body cap is BODY_CAP."""
    if request.param == "in_process":
        inner = InProcessFace(Settings(repository=wire_repository, max_body_bytes=BODY_CAP))
        try:
            until(lambda: _all_ready(inner), "models ready", 120)
            yield inner
        finally:
            inner.close()
        return
    kind = Server if request.param == "protocol" else AsgiServer
    server = kind(wire_repository, "--max-body-bytes", str(BODY_CAP))
    try:
        server.wait_ready()
        yield SocketFace(server)
    finally:
        server.stop()
