"""The only composition root: settings in, application or running server out; start-up, drain and exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from importlib import metadata
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route

from app.auth import with_admin_token
from app.builds.jobs import Builds, Limits
from app.builds.service import BuildService
from app.builds.store import BuildStore
from app.builds.versions import LocalVersions
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
from app.http.held import Room
from app.http.infer import InferHandler
from app.http.limits import BodyLimit
from app.http.openapi import describe_inference
from app.http.reports import report_routes
from app.http.routes import control_plane
from app.listening import listen, log_listening
from app.models import ModelManager
from app.reports import Reports
from app.server import Drain, DrainingServer, prepare_process, protocol_config
from app.serving.device import Device
from app.serving.errors import Cancelled, ServingError
from app.serving.gateway import Gateway
from app.serving.registry import Registry
from app.settings import Settings
from app.tally import Tally
from app.temporary import with_mirror
from engines.errors import EngineError
from engines.runtime import usable_threads
from engines.runtime.plans import look_here

if TYPE_CHECKING:
    from app.following import Following

__all__ = ["create_app", "serve"]

log = logging.getLogger(__name__)
_BATCHES_PER_GPU = 4
"""Under way at once: of each of two models, one is computed while another is copied."""


def create_app(settings: Settings, held: Tally | None = None) -> FastAPI:
    """The whole service as an ASGI application. `app.state` carries `gateway`, `manager` and `handler`.

    `held` counts the bytes of bodies in all processes of the server, where it has several. Must be called where the
    event loop that will serve it is running.
    """
    leaving = contextlib.ExitStack()
    settings = with_mirror(with_admin_token(settings), leaving)
    loop = asyncio.get_running_loop()
    device = Device(loop, settings.threads or usable_threads())
    gateway = Gateway(Registry(), device, Device(loop, _BATCHES_PER_GPU * max(1, look_here().gpus)))
    manager = ModelManager(settings, gateway)

    def lose(reason: str) -> None:
        loop.call_soon_threadsafe(_lose, gateway, reason)

    manager.plans.lost = lose
    following = _following(settings, manager, gateway.registry)
    builds = _builds(settings, manager, gateway.registry, following)
    room = Room(settings.max_held_bytes, held)
    handler = InferHandler(gateway, settings.max_body_bytes, room=room, access_log=settings.access_log)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with leaving:
            if following is not None:
                await following.start()
            await manager.start()
            builds.start()
            yield
            gateway.stop()
            await builds.stop()
            if following is not None:
                await following.stop()
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
    plane = control_plane(settings, gateway, manager, builds)
    app.include_router(plane)
    reports = Reports(manager, manager.plans.render)
    app.include_router(build_routes(settings, builds, reports))
    app.include_router(report_routes(reports))
    app.add_middleware(BodyLimit, limit_bytes=settings.max_body_bytes, room=handler.room)
    _answer_errors(app, [*plane.routes, *app.routes])
    describe_inference(app)
    return app


def _following(settings: Settings, manager: ModelManager, registry: Registry) -> Following | None:
    if settings.store is None:
        return None
    from app.following import Following  # the clients of stores, which a folder does not need

    return Following(settings, manager, registry)


def _builds(settings: Settings, manager: ModelManager, registry: Registry, following: Following | None) -> BuildService:
    """Of this server, where its models lie in a folder; of all that share a store, where they lie in one."""
    limits = Limits(settings.max_queued_builds, settings.keep_builds, settings.max_builds_bytes)
    versions = LocalVersions(settings.models_folder) if following is None else following.versions
    work = ServerWork(settings.models_folder, versions, manager.plans, manager, registry)
    folder = settings.builds_folder
    if following is None:
        return Builds(BuildStore(folder), work, limits)
    from app.builds.shared.arrivals import Arrivals
    from app.builds.shared.opened import open_builds  # the clients of stores and clusters, which a folder does not need

    arrivals = Arrivals(work, manager, registry, following.nudge)
    return open_builds(settings, following.store, work, arrivals, limits, folder)


def _lose(gateway: Gateway, reason: str) -> None:
    log.critical("a GPU is lost, and this process must be started anew: %s", reason)
    gateway.lose(f"a GPU is lost, and this server must be started anew: {reason}")


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


def drain_of(app: FastAPI, settings: Settings) -> Drain:
    """How an application of `create_app` ends."""
    manager, builds, handler = app.state.manager, app.state.builds, app.state.handler

    def begin_stop() -> None:
        builds.begin_stop()
        manager.begin_stop()

    return Drain(settings.drain_s, app.state.gateway.stop, lambda: handler.in_flight, begin_stop)


async def _serve(settings: Settings, sockets: list[socket.socket]) -> None:
    app = create_app(settings)
    config = protocol_config(app, app.state.handler, settings)
    await DrainingServer(config, drain_of(app, settings), lambda: log_listening(settings.host, sockets)).serve(sockets)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; returns after the drain. CannotListen where it cannot."""
    import uvloop

    sockets = listen(settings.host, settings.port)
    prepare_process(settings)
    uvloop.run(_serve(settings, sockets))
