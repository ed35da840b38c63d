"""Send a model, have it built, watch that, cancel it: FastAPI routes over the queue of builds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.auth import check_admin
from app.builds.service import BuildService
from app.builds.state import Asked, BuildState, Progress
from app.http.errors import (
    ACCEPTED,
    BadRequest,
    BodyTooLarge,
    Forbidden,
    NotAuthorized,
    NotFound,
)
from app.http.incoming import accept
from app.http.schemas import described
from app.reports import Reports
from app.serving.errors import QueueFull
from app.settings import Settings

__all__ = ["BuildStatus", "build_routes"]

T = TypeVar("T")
_COMPILE_PATH = "/v2/repository/models/{model}/compile"
Model = Annotated[str, Path(description="Model name.")]
BuildId = Annotated[str, Path(description="Build id.")]
Authorization = Annotated[str | None, Header(description="Bearer <admin token>.")]
_ERRORS = described(BadRequest, NotFound, BodyTooLarge, QueueFull, NotAuthorized, Forbidden)
_FILE = {"type": "string", "format": "binary"}
_PARTS: dict[str, Any] = {
    "model": {**_FILE, "description": "A single-file ONNX model."},
    "calibration": {**_FILE, "description": ".npz of input names to arrays, first axis = samples."},
    "validation": {**_FILE, "description": "The same, with `labels` or `targets`."},
    "spec": {"type": "string", "contentMediaType": "application/json", "description": "What is asked of the build."},
}
_FORM = {"schema": {"type": "object", "required": ["model"], "additionalProperties": False, "properties": _PARTS}}


class BuildStatus(Progress):
    """A build: what was sent, and how far it is."""

    id: str
    model: str
    created: str
    sha256: str = Field(description="Of the model file.")
    size_bytes: int
    report: str | None = Field(None, description="Path of the version's report, where there is one.")
    log: list[str] = Field(default_factory=list)


def build_routes(settings: Settings, builds: BuildService, reports: Reports) -> APIRouter:
    """Upload, list, show, follow, cancel. All of them need the admin token."""
    router = APIRouter(tags=["builds"], responses=_ERRORS)

    def check(authorization: str | None) -> None:
        check_admin(settings, authorization)
        builds.require_turn()

    async def status_of(build: str) -> BuildStatus:
        return await with_report(await _status(builds, build))

    async def with_report(status: BuildStatus) -> BuildStatus:
        if status.state is not BuildState.SUCCEEDED or status.version is None:
            return status
        if not await reports.exists(status.model, status.version):
            return status
        return status.model_copy(update={"report": f"/v2/models/{status.model}/versions/{status.version}/report"})

    @router.post(
        _COMPILE_PATH, status_code=ACCEPTED,
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": _FORM}}},
    )  # fmt: skip
    async def send(
        model: Model, request: Request, response: Response, authorization: Authorization = None
    ) -> BuildStatus:
        """Send a model: it is compiled, checked and brought into service as a new version; follow the Location."""
        check(authorization)
        build = await accept(settings, builds, model, request)
        response.headers["location"] = f"/v2/builds/{build}"
        return await status_of(build)

    @router.get("/v2/builds")
    async def all_builds(authorization: Authorization = None) -> list[BuildStatus]:
        """All builds that are remembered, the oldest first."""
        check(authorization)
        return [await with_report(_shown(asked, progress)) for asked, progress in await builds.all()]

    @router.get("/v2/builds/{build}")
    async def one_build(build: BuildId, authorization: Authorization = None) -> BuildStatus:
        """How far a build is, with its log."""
        check(authorization)
        status = await status_of(build)
        found = await _known(build, builds.events(build))
        log = [f"{event.time} {event.message}" for event in found if event.message]
        return status.model_copy(update={"log": log})

    @router.get("/v2/builds/{build}/events", response_class=StreamingResponse)
    async def events(
        build: BuildId, authorization: Authorization = None, last_event_id: int = Header(0)
    ) -> StreamingResponse:
        """Server-sent events, from the first (or after Last-Event-ID) until the build has ended."""
        check(authorization)
        await _status(builds, build)
        return StreamingResponse(_stream(builds, build, max(0, last_event_id)), media_type="text/event-stream")

    @router.delete("/v2/builds/{build}")
    async def cancel(build: BuildId, authorization: Authorization = None) -> BuildStatus:
        """Cancel a build that waits or runs."""
        check(authorization)
        state = (await _status(builds, build)).state
        if not await _known(build, builds.cancel(build)):
            raise BadRequest(f"build {build} cannot be cancelled any more: it is {state.value}")
        return await _status(builds, build)

    return router


async def _status(builds: BuildService, build: str) -> BuildStatus:
    return _shown(*await _known(build, builds.one(build)))


async def _known(build: str, asking: Awaitable[T]) -> T:
    """What is asked of a build, which may be removed at any time."""
    try:
        return await asking
    except KeyError:
        raise NotFound(f"there is no build '{build[:40]}'") from None


def _shown(asked: Asked, progress: Progress) -> BuildStatus:
    shown = asked.model_dump(include={"id", "model", "created", "sha256", "size_bytes"})
    return BuildStatus(**shown, **progress.model_dump())


async def _stream(builds: BuildService, build: str, after: int) -> AsyncIterator[str]:
    async for number, event in builds.follow(build, after):
        yield f"id: {number}\nevent: {event.state.value}\ndata: {event.model_dump_json()}\n\n"
