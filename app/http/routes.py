"""The control plane: health, metadata, config, statistics, repository, logging, metrics. FastAPI; not the hot path."""

from __future__ import annotations

import asyncio
import json
import logging
from importlib import metadata
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ValidationError

from app.auth import check_admin
from app.config import ModelConfig, config_of
from app.gpu_metrics import GpuMetrics
from app.http import compression
from app.http.errors import OK, BadRequest, BodyTooLarge, Forbidden, NotAuthorized, NotSupported
from app.http.files import brought_files
from app.http.held import Hold
from app.http.limits import HOLD, LIMIT
from app.http.schemas import (
    IndexEntry,
    IndexRequest,
    LoadRequest,
    LogSettings,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    ServerLive,
    ServerMetadata,
    ServerReady,
    ServerStarted,
    described,
    model_config,
    model_metadata,
    model_statistics,
)
from app.http.triton_config import from_triton, is_triton
from app.http.workers import INLINE_BYTES
from app.metrics import CONTENT_TYPE, BuildsSeen, Snapshot
from app.models import ModelManager
from app.serving.errors import DeviceGone, ModelNotReady, UnknownModel
from app.serving.gateway import Gateway
from app.serving.registry import ModelState, Registry
from app.settings import Settings

__all__ = ["EXTENSIONS", "control_plane"]

Schema = TypeVar("Schema", bound=BaseModel)

EXTENSIONS = [
    "binary_tensor_data", "classification", "logging", "model_configuration", "model_repository", "parameters",
    "schedule_policy", "statistics",
]  # fmt: skip
"""Only what works: clients act on this list."""

Model = Annotated[str, Path(description="Model name.")]
Number = Annotated[str, Path(pattern="^[0-9]{1,18}$", description="Version number.")]
Authorization = Annotated[str | None, Header(description="Bearer <admin token>.")]


_ERRORS = described(BadRequest, UnknownModel, BodyTooLarge, ModelNotReady)
_GUARDED = {**_ERRORS, **described(NotAuthorized, Forbidden)}


def control_plane(settings: Settings, gateway: Gateway, manager: ModelManager, builds: BuildsSeen) -> APIRouter:
    """All routes but inference."""
    router = APIRouter(responses=_ERRORS)
    _add_health(router, gateway)
    _add_metadata(router, gateway)
    _add_repository(router, settings, gateway, manager)
    _add_logging(router, settings)
    if settings.metrics:
        gpus = GpuMetrics()
        text = {"description": "The page.", "content": {"text/plain": {"schema": {"type": "string"}}}}

        @router.get("/metrics", tags=["metrics"], response_class=Response, responses={**_ERRORS, OK: text})
        async def metrics() -> Response:
            """Prometheus text format: Triton's names, and bitserve's histograms in seconds."""
            ours, of_gpus = await asyncio.gather(
                asyncio.to_thread(Snapshot(gateway, builds).page), asyncio.to_thread(gpus.page)
            )
            return Response(ours + of_gpus, media_type=CONTENT_TYPE)

    return router


def _add_health(router: APIRouter, gateway: Gateway) -> None:
    @router.head("/v2/health/live", include_in_schema=False)  # probes use it; as GET, and no body is sent
    @router.get("/v2/health/live", tags=["health"])
    async def live() -> ServerLive:
        """Whether the process answers. Never depends on models. 503 some seconds after a GPU was lost, or as soon as
        nobody waits any more: then it is to be started anew.
        """
        if gateway.is_spent:
            raise DeviceGone(gateway.lost)
        return ServerLive()

    @router.head("/v2/health/started", include_in_schema=False)
    @router.get("/v2/health/started", tags=["health"])
    async def started() -> ServerStarted:
        """Whether all models that were there at the start have been tried: 503 until then, and 200 ever after."""
        reason = gateway.registry.why_not_started()
        if reason:
            raise ModelNotReady(f"the server is starting: {reason}")
        return ServerStarted()

    @router.head("/v2/health/ready", include_in_schema=False)
    @router.get("/v2/health/ready", tags=["health"])
    async def ready() -> ServerReady:
        """Whether traffic is accepted: 400 from the moment the server is told to stop, 503 where a GPU is lost."""
        if gateway.stopping:
            raise BadRequest("the server is stopping; it accepts no more requests")
        if gateway.lost:
            raise DeviceGone(gateway.lost)
        return ServerReady()

    @router.head("/v2/models/{model}/ready", include_in_schema=False)
    @router.head("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    @router.get("/v2/models/{model}/ready", tags=["health"])
    @router.get("/v2/models/{model}/versions/{version}/ready", tags=["health"])
    async def model_ready(model: Model, version: Number | None = None) -> ModelReady:
        """Whether this model (this version) answers inference calls: 200, or 400 with the reason."""
        await ready()
        try:
            gateway.resolve(model, None if version is None else int(version))
        except (UnknownModel, ModelNotReady) as error:
            raise BadRequest(str(error)) from error
        return ModelReady(name=model)


def _add_metadata(router: APIRouter, gateway: Gateway) -> None:
    version_number = metadata.version("bitserve")

    @router.get("/v2", tags=["metadata"])
    async def server_metadata() -> ServerMetadata:
        """The server's name, version and extensions."""
        return ServerMetadata(name="bitserve", version=version_number, extensions=EXTENSIONS)

    @router.get("/v2/models/stats", tags=["statistics"])
    async def all_statistics() -> ModelStatistics:
        """Statistics of every version that serves."""
        return model_statistics(gateway.registry.endpoints(), gateway.stats)

    @router.get("/v2/models/{model}", tags=["metadata"])
    @router.get("/v2/models/{model}/versions/{version}", tags=["metadata"])
    async def one_metadata(model: Model, version: Number | None = None) -> ModelMetadata:
        """Versions, inputs and outputs of a model."""
        endpoint = gateway.resolve(model, None if version is None else int(version))
        serving = [v for v in gateway.registry.versions(model) if v.state is ModelState.READY]
        return model_metadata(endpoint, serving)

    @router.get("/v2/models/{model}/config", tags=["metadata"])
    @router.get("/v2/models/{model}/versions/{version}/config", tags=["metadata"])
    async def one_config(model: Model, version: Number | None = None) -> dict[str, Any]:
        """The configuration in force, in Triton's terms."""
        return model_config(gateway.resolve(model, None if version is None else int(version)))

    @router.get("/v2/models/{model}/stats", tags=["statistics"])
    @router.get("/v2/models/{model}/versions/{version}/stats", tags=["statistics"])
    async def one_statistics(model: Model, version: Number | None = None) -> ModelStatistics:
        """Statistics of a model's serving versions, or of one version."""
        if version is not None:
            return model_statistics([gateway.resolve(model, int(version))], gateway.stats)
        gateway.resolve(model)
        serving = [v.endpoint for v in gateway.registry.versions(model) if v.endpoint is not None]
        return model_statistics(serving, gateway.stats)


def _add_repository(router: APIRouter, settings: Settings, gateway: Gateway, manager: ModelManager) -> None:
    @router.post("/v2/repository/index", tags=["repository"], openapi_extra=_optional_body(IndexRequest))
    async def index(request: Request) -> list[IndexEntry]:
        """Every version on disk and its state."""
        only_ready = (await _body(request, IndexRequest)).ready
        return [
            IndexEntry(name=v.model, version=str(v.number), state=v.state.value, reason=v.reason)
            for v in gateway.registry.all()
            if not only_ready or v.state is ModelState.READY
        ]

    @router.post(
        "/v2/repository/models/{model:path}/load", tags=["repository"], response_class=Response, responses=_GUARDED,
        openapi_extra=_optional_body(LoadRequest),
    )  # fmt: skip
    async def load(model: Model, request: Request, authorization: Authorization = None) -> Response:
        """Load a model, or load it anew; answers when it serves."""
        check_admin(settings, authorization)
        asked = await _body(request, LoadRequest)
        config = _config_override(asked.parameters, model, gateway.registry)
        files = await asyncio.to_thread(brought_files, asked.parameters, config, _hold(request).take)
        await manager.load(model, config, files)
        await gateway.published()
        return Response()

    @router.post(
        "/v2/repository/models/{model:path}/unload", tags=["repository"], response_class=Response, responses=_GUARDED,
        openapi_extra=_optional_body(LoadRequest),
    )  # fmt: skip
    async def unload(model: Model, request: Request, authorization: Authorization = None) -> Response:
        """Stop serving a model; what it accepted is answered. It stays on disk and can be loaded again."""
        check_admin(settings, authorization)
        await _body(request, LoadRequest)
        manager.unload(model)
        await gateway.published()
        return Response()

    @router.post("/v2/repository/{repository}/index", include_in_schema=False)
    @router.post("/v2/repository/{repository}/models/{model:path}/load", include_in_schema=False)
    @router.post("/v2/repository/{repository}/models/{model:path}/unload", include_in_schema=False)
    async def other_repository(repository: str, model: str = "") -> Response:
        raise NotSupported(f"repository '{repository}': this server has one repository, without a name")


def _config_override(parameters: dict[str, Any], model: str, registry: Registry) -> ModelConfig | None:
    text = parameters.get("config")
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRequest("parameter 'config' must be a string of JSON")
    try:
        document = json.loads(text)
        if is_triton(document):
            served = [v.endpoint for v in registry.versions(model) if v.endpoint is not None]
            tensors = (served[-1].inputs, served[-1].outputs) if served else ()
            document = from_triton(document, model, *tensors)
        return config_of(document, "config")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"parameter 'config' is not JSON: {error}") from error


def _add_logging(router: APIRouter, settings: Settings) -> None:
    logger = logging.getLogger()

    def current() -> LogSettings:
        level = logger.level
        return LogSettings(
            log_info=level <= logging.INFO,
            log_warning=level <= logging.WARNING,
            log_error=level <= logging.ERROR,
            log_verbose_level=int(level <= logging.DEBUG),
        )

    @router.get("/v2/logging", tags=["logging"])
    async def get_logging() -> LogSettings:
        """What is logged."""
        return current()

    @router.post("/v2/logging", tags=["logging"], responses=_GUARDED, openapi_extra=_optional_body(LogSettings))
    async def set_logging(request: Request, authorization: Authorization = None) -> LogSettings:
        """Change what is logged; keys left out stay as they are."""
        check_admin(settings, authorization)
        asked = await _body(request, LogSettings)
        given = asked.model_fields_set
        if "log_file" in given and asked.log_file:
            raise BadRequest("log_file cannot be changed over the network; the log goes to stderr")
        if "log_format" in given and asked.log_format != "default":
            raise BadRequest(f"log_format '{asked.log_format}' is not known; expected default (JSON lines)")
        logger.setLevel(_level(current().model_copy(update=asked.model_dump(include=given))))
        return current()


def _level(wanted: LogSettings) -> int:
    if wanted.log_verbose_level > 0:
        return logging.DEBUG
    for flag, level in ((wanted.log_info, logging.INFO), (wanted.log_warning, logging.WARNING)):
        if flag:
            return level
    return logging.ERROR if wanted.log_error else logging.CRITICAL


async def _body(request: Request, schema: type[Schema]) -> Schema:
    """An optional JSON body, whatever its Content-Type says: tritonclient sends none at all."""
    coding = request.headers.get("content-encoding", "").strip().lower()
    data = await compression.decompress(await request.body(), coding, request.scope[LIMIT], _hold(request).take)
    if not data.strip():
        return schema()
    try:
        if len(data) > INLINE_BYTES:
            return await asyncio.to_thread(schema.model_validate_json, data)
        return schema.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"the body does not fit: {where + ': ' if where else ''}{first['msg']}") from error


def _hold(request: Request) -> Hold:
    hold: Hold = request.scope[HOLD]
    return hold


def _optional_body(schema: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": False, "content": content}}
