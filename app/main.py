"""The only composition root: settings in, application or running server out; start-up, drain and exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from app.auth import with_admin_token
from app.builds.jobs import Builds, Limits
from app.builds.store import BuildStore
from app.builds.work import ServerWork
from app.http.asgi import InferAsgi
from app.http.builds import build_routes
from app.http.errors import (
    METHOD_NOT_ALLOWED,
    BadRequest,
    HttpError,
    NotFound,
    body_of,
    headers_of,
    message_of,
    status_of,
)
from app.http.infer import InferHandler
from app.http.limits import BodyLimit
from app.http.openapi import describe_inference
from app.http.protocol import InferProtocol
from app.http.reports import report_routes
from app.http.routes import control_plane
from app.listening import BACKLOG, listen
from app.logs import configure_logging
from app.models import ModelManager
from app.reports import Reports
from app.serving.device import Device
from app.serving.errors import Cancelled, ServingError
from app.serving.gateway import Gateway
from app.serving.registry import Registry
from app.settings import Settings
from engines.errors import EngineError
from engines.runtime import usable_threads

__all__ = ["create_app", "serve"]

log = logging.getLogger(__name__)
_SWITCH_S = 0.0005
"""A thread that has a batch's answer waits so long at most for the loop to let go of the interpreter; Python's own 5 ms
are many times what a small model takes.
"""
_TICK_S = 0.1
"""Of uvicorn's main loop: what it decides, it decides so late."""
_CLOSING_S = 0.2
"""What ending takes when nothing is waited for: the pause uvicorn makes once connections are told, and our own end."""


def create_app(settings: Settings) -> FastAPI:
    """The whole service as an ASGI application. `app.state` carries `gateway`, `manager` and `handler`.

    Must be called where the event loop that will serve it is running.
    """
    settings = with_admin_token(settings)
    loop = asyncio.get_running_loop()
    device = Device(loop, settings.threads or usable_threads())
    gateway = Gateway(Registry(), device)
    manager = ModelManager(settings, gateway)
    builds = Builds(
        BuildStore(settings.repository / ".builds"),
        ServerWork(settings.repository, manager.plans, manager, gateway.registry),
        Limits(settings.max_queued_builds, settings.keep_builds, settings.max_builds_bytes),
    )
    handler = InferHandler(
        gateway, settings.max_body_bytes, max_held_bytes=settings.max_held_bytes, access_log=settings.access_log
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await manager.start()
        builds.start()
        yield
        gateway.stop()
        await builds.stop()
        await manager.stop()
        handler.workers.close()

    app = FastAPIOffline(
        title="bitserve",
        version=metadata.version("bitserve"),
        description="Open Inference Protocol v2 with Triton's extensions.",
        lifespan=lifespan,
        redirect_slashes=False,  # a path that is not of the protocol is 404, as its clients expect
    )
    app.state.gateway, app.state.manager, app.state.handler, app.state.builds = gateway, manager, handler, builds
    asgi = InferAsgi(handler)
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        app.router.routes.append(Route(path, asgi, methods=["POST"], include_in_schema=False))
    plane = control_plane(settings, gateway, manager)
    app.include_router(plane)
    reports = Reports(manager, manager.plans.render)
    app.include_router(build_routes(settings, builds, reports))
    app.include_router(report_routes(reports))
    app.add_middleware(BodyLimit, limit_bytes=settings.max_body_bytes, room=handler.room)
    _answer_errors(app, [*plane.routes, *app.routes])
    describe_inference(app)
    return app


def _answer_errors(app: FastAPI, routes: list[BaseRoute]) -> None:
    """Every error of every route is `{"error": ...}`: clients of the protocol cannot read anything else."""

    async def known(_: Request, error: Exception) -> Response:
        return _answer(error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = {key.lower(): value for key, value in (error.headers or {}).items()}
        if error.status_code == METHOD_NOT_ALLOWED:
            headers["allow"] = ", ".join(sorted(_allowed_methods(routes, request)))
        return _response(error.status_code, error.detail, headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        if where[:1] == ["path"]:  # a path that no route of the protocol has, such as a version that is no number
            return _answer(NotFound("Not Found"))
        return _answer(BadRequest(f"{'.'.join(where)}: {first['msg']}"))

    async def departed(request: Request, _: Exception) -> Response:
        log.info("%s %s has ended before its last byte: its client left", request.method, request.url.path)
        return _answer(Cancelled("the client left before the last byte of its request"))

    async def unexpected(_: Request, error: Exception) -> Response:
        log.error("an unexpected error", exc_info=error)
        return _answer(error)

    for kind in (HttpError, ServingError, EngineError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(ClientDisconnect, departed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


def _answer(error: Exception) -> Response:
    return _response(status_of(error), message_of(error), headers_of(error))


def _response(status: int, message: str, headers: dict[str, str]) -> Response:
    return Response(body_of(message), status, headers, "application/json")


def _allowed_methods(routes: list[BaseRoute], request: Request) -> set[str]:
    """Of all routes of a path: the router names those of the first one only."""
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in found for method in getattr(route, "methods", None) or ()}


class _Server(uvicorn.Server):
    """uvicorn's server with a drain: stop admitting, answer what was accepted, then close and exit 0."""

    def __init__(
        self, config: uvicorn.Config, handler: InferHandler, drain_s: float, begin_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._begin_stop: Callable[[], None] | None = begin_stop
        self._handler, self._drain_s = handler, drain_s
        self._drain_until_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave now."""
        if self._drain_until_s is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_until_s = time.monotonic() + self._drain_s
        self._handler.gateway.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which says where it listens only where it has made the sockets."""
        await super().startup(sockets)
        if self.started and sockets is not None:
            self._log_started_message(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until_s is not None and not self.should_exit:
            begin_stop, self._begin_stop = self._begin_stop, None
            if begin_stop is not None:  # not in the signal's handler, which may interrupt what it would change
                begin_stop()
            left_s = self._drain_until_s - time.monotonic()
            self.should_exit = self._handler.in_flight == 0 or left_s <= _TICK_S + _CLOSING_S
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but the application is ended in haste, too: a compile is a child process that would live on."""
        if self._drain_until_s is not None:
            left_s = max(0.0, self._drain_until_s - _CLOSING_S - time.monotonic())
            self.config.timeout_graceful_shutdown = left_s  # type: ignore[assignment]  # asyncio takes parts of seconds
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a drained server exits 0 instead of dying of the signal that asked for it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _serve(settings: Settings, sockets: list[socket.socket]) -> None:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=InferProtocol.configure(app.state.handler, settings),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
    )

    def begin_stop() -> None:
        app.state.builds.begin_stop()
        app.state.manager.begin_stop()

    await _Server(config, app.state.handler, settings.drain_s, begin_stop).serve(sockets)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; returns after the drain. CannotListen where it cannot."""
    import uvloop

    sockets = listen(settings.host, settings.port)
    sys.setswitchinterval(_SWITCH_S)
    configure_logging(settings.log_level)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # connections are bounded by a setting, not by a shell's default
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(settings, sockets))
