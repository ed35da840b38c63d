"""The control plane's answers as pydantic models; what `/docs` shows is what is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.errors import status_of
from app.http.triton_config import MAX_BATCH_ROWS, MAX_QUEUE_ROWS
from app.serving.endpoint import Endpoint
from app.serving.limits import ModelOptions, QueuePolicy
from app.serving.registry import Version
from app.serving.stats import Histogram, Stats
from app.serving.ticket import Outcome
from engines.tensor import TensorSpec, datatype

__all__ = [
    "ErrorBody",
    "IndexEntry",
    "IndexRequest",
    "LoadRequest",
    "LogSettings",
    "ModelMetadata",
    "ModelReady",
    "ModelStatistics",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
    "ServerStarted",
    "described",
    "model_config",
    "model_metadata",
    "model_statistics",
]  # fmt: skip


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: str


def described(*kinds: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page says of answers that such errors become."""
    return {status_of(kind): {"model": ErrorBody} for kind in kinds}


class ServerLive(BaseModel):
    """The process answers."""

    live: bool = True


class ServerReady(BaseModel):
    """The server accepts traffic; if not, the answer is 400 with an error."""

    ready: bool = True


class ServerStarted(BaseModel):
    """Every model that was there at the start has been tried; if not, the answer is 503 with what is loading."""

    started: bool = True


class ModelReady(BaseModel):
    """The model (the version) answers inference calls; if not, the answer is 400 with an error that says why."""

    name: str
    ready: bool = True


class ServerMetadata(BaseModel):
    """Who answers, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; -1 marks a variable dimension, the batch dimension is included."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's versions and tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """A version and its state: READY, LOADING, UNLOADING or UNAVAILABLE, with the reason."""

    name: str
    version: str
    state: str
    reason: str


class IndexRequest(BaseModel):
    """May be left out. `ready` true lists only what serves."""

    ready: bool = False


class LoadRequest(BaseModel):
    """May be left out. Parameter `config`: a JSON string that stands in for config.toml until the next load.

    Its keys are Triton's ModelConfig's, as `GET .../config` answers them, or those of config.toml.
    """

    model_config = ConfigDict(extra="ignore")
    parameters: dict[str, str | bool | int | float] = Field(default_factory=dict)


class Duration(BaseModel):
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0


class InferStatistics(BaseModel):
    """Per request: each request of a batch is charged the whole batch's compute time."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class BatchStatistics(BaseModel):
    """Per execution, by batch size in rows."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryUsage(BaseModel):
    """Bytes that a version holds."""

    type: str
    id: int
    byte_size: int


class VersionStatistics(BaseModel):
    """One version."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    response_stats: dict[str, Any] = Field(default_factory=dict)
    batch_stats: list[BatchStatistics]
    memory_usage: list[MemoryUsage]


class ModelStatistics(BaseModel):
    """One or all models."""

    model_stats: list[VersionStatistics]


class LogSettings(BaseModel):
    """What is logged. The place is the server's: stderr."""

    model_config = ConfigDict(extra="forbid")
    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"


def model_metadata(endpoint: Endpoint, versions: list[Version]) -> ModelMetadata:
    """Metadata of one version; `versions` are all that serve."""
    return ModelMetadata(
        name=endpoint.model,
        versions=[str(version.number) for version in versions],
        platform="onnx_onnxv1",
        inputs=[_tensor(spec) for spec in endpoint.inputs],
        outputs=[_tensor(spec) for spec in endpoint.outputs],
    )


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def _leading_batch(endpoint: Endpoint) -> bool:
    """Whether the protocol's idea of batching fits: rows in the first dimension of every input."""
    return bool(endpoint.options.limits.max_batch_rows) and all(spec.batch_axis == 0 for spec in endpoint.inputs)


def model_config(endpoint: Endpoint) -> dict[str, Any]:
    """Triton's ModelConfig as far as it applies, with its defaults filled in; `dims` leave the batch axis out.

    A model that carries rows elsewhere than in the first dimension (recurrent states) is batched too, but its config
    says `max_batch_size` 0, since to a client of the protocol that number means the first dimension.
    """
    options, batched = endpoint.options, _leading_batch(endpoint)
    rows = options.limits.max_batch_rows
    parameters = {MAX_QUEUE_ROWS: options.queue.max_rows, **({} if batched or not rows else {MAX_BATCH_ROWS: rows})}
    config: dict[str, Any] = {
        "name": endpoint.model,
        "platform": "onnx_onnxv1",
        "backend": "tensorrt" if endpoint.is_on_gpu else "openvino",
        "version_policy": _version_policy(options.version_policy),
        "max_batch_size": rows if batched else 0,
        "input": [_config_tensor(spec, batched) for spec in endpoint.inputs],
        "output": [_config_tensor(spec, batched, options.label_files.get(spec.name)) for spec in endpoint.outputs],
        "instance_group": [_instance_group(endpoint)],
        "default_model_filename": "model.onnx",
        "optimization": {"priority": "PRIORITY_DEFAULT"},
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }
    if rows or options.queue.levels or options.queue.policy != QueuePolicy():
        config["dynamic_batching"] = _dynamic_batching(options)
    return config


def _instance_group(endpoint: Endpoint) -> dict[str, Any]:
    """On GPUs `count` is that of each."""
    if not endpoint.is_on_gpu:
        return {"name": endpoint.model, "kind": "KIND_CPU", "count": endpoint.instances}
    count = endpoint.options.instances or 1
    return {"name": endpoint.model, "kind": "KIND_GPU", "count": count, "gpus": list(endpoint.options.gpus)}


def _dynamic_batching(options: ModelOptions) -> dict[str, Any]:
    limits, queue = options.limits, options.queue
    batching: dict[str, Any] = {
        "preferred_batch_size": list(limits.preferred_rows) or [rows for rows in (limits.max_batch_rows,) if rows],
        "max_queue_delay_microseconds": limits.max_queue_delay_ns // 1000,
        "preserve_ordering": options.preserve_ordering,
        "priority_levels": queue.levels,
        "default_priority_level": queue.default_level,
        "default_queue_policy": _queue_policy(queue.policy),
    }
    if queue.level_policies:
        batching["priority_queue_policy"] = {
            str(level): _queue_policy(policy) for level, policy in queue.level_policies.items()
        }
    return batching


def _queue_policy(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": "DELAY" if policy.delay_expired else "REJECT",
        "default_timeout_microseconds": policy.default_timeout_ns // 1000,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_requests,
    }


def _version_policy(policy: str) -> dict[str, Any]:
    if policy == "latest":
        return {"latest": {"num_versions": 1}}
    return {"all": {}} if policy == "all" else {"specific": {"versions": [int(n) for n in policy.split(",")]}}


def _config_tensor(spec: TensorSpec, batched: bool, label_file: str | None = None) -> dict[str, Any]:
    dims = list(spec.row_shape if batched else spec.shape)
    tensor = {"name": spec.name, "data_type": datatype(spec.datatype).config_name, "dims": dims}
    return tensor if label_file is None else {**tensor, "label_filename": label_file}


def model_statistics(endpoints: list[Endpoint], stats_of: Callable[[Endpoint], Stats]) -> ModelStatistics:
    """Statistics of the given versions."""
    return ModelStatistics(model_stats=[_version_statistics(one, stats_of(one)) for one in endpoints])


def _version_statistics(endpoint: Endpoint, stats: Stats) -> VersionStatistics:
    return VersionStatistics(
        name=endpoint.model,
        version=str(endpoint.version),
        last_inference=stats.last_inference_ms,
        inference_count=stats.inferred_rows,
        execution_count=stats.executions,
        inference_stats=_infer_statistics(stats),
        batch_stats=[
            BatchStatistics(
                batch_size=rows,
                compute_input=Duration(count=count, ns=input_ns),
                compute_infer=Duration(count=count, ns=infer_ns),
                compute_output=Duration(count=count, ns=output_ns),
            )
            for rows, (count, input_ns, infer_ns, output_ns) in sorted(stats.batches.items())
        ],
        memory_usage=[MemoryUsage(type="CPU", id=0, byte_size=endpoint.memory_bytes)],
    )


def _infer_statistics(stats: Stats) -> InferStatistics:
    failed = [stats.request_ns[outcome] for outcome in Outcome if outcome is not Outcome.SUCCESS]
    computed = stats.compute_ns[Outcome.SUCCESS]
    return InferStatistics(
        success=_duration(stats.request_ns[Outcome.SUCCESS]),
        fail=Duration(count=sum(h.count for h in failed), ns=sum(h.total for h in failed)),
        queue=_duration(stats.queue_ns[Outcome.SUCCESS]),
        compute_input=_duration(computed[0]),
        compute_infer=_duration(computed[1]),
        compute_output=_duration(computed[2]),
    )


def _duration(histogram: Histogram) -> Duration:
    return Duration(count=histogram.count, ns=histogram.total)
