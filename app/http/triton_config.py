"""Triton's ModelConfig as an override of ours: load's `config` in the terms that Triton's clients send.

A pure translation into the keys of config.toml. What only describes the model must agree with it; what this server
does not do is refused by name, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from app.http.errors import BadRequest
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = ["MAX_BATCH_ROWS", "MAX_QUEUE_ROWS", "from_triton", "is_triton"]

MAX_BATCH_ROWS, MAX_QUEUE_ROWS = "max_batch_rows", "max_queue_rows"
"""Entries of ModelConfig's `parameters`, for what Triton has no field for."""

_MODELS_OWN = {
    "platform": ("onnx_onnxv1", "onnxruntime_onnx"),
    "backend": ("openvino", "onnxruntime"),
    "default_model_filename": ("model.onnx",),
}
_IGNORED = ("runtime", "optimization")
_READ = ("version_policy", "max_batch_size", "instance_group", "dynamic_batching", "parameters")
_NOT_DONE = (
    "batch_input", "batch_output", "cc_model_filenames", "ensemble_scheduling", "metric_tags", "model_metrics",
    "model_operations", "model_repository_agents", "model_transaction_policy", "model_warmup", "response_cache",
    "scheduling_choice", "sequence_batching",
)  # fmt: skip
_KNOWN = ("name", *_MODELS_OWN, "input", "output", *_IGNORED, *_READ, *_NOT_DONE)
_TENSOR_NOT_DONE = ("allow_ragged_batch", "is_non_linear_format_io", "is_shape_tensor", "optional", "reshape")
_KINDS = ("KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL")
_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def is_triton(document: object) -> bool:
    """Whether a parsed `config` is in Triton's terms; none of them is a key of config.toml."""
    return isinstance(document, dict) and any(_snake(str(key)) in _KNOWN for key in document)


def from_triton(
    document: Mapping[str, Any], model: str, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()
) -> dict[str, Any]:
    """The configuration in config.toml's keys; BadRequest names the first thing that cannot be taken.

    `inputs` and `outputs` are those of the version that serves; without them a description of tensors goes unchecked.
    Values are checked later, with the rest of the configuration.
    """
    given = _section(document, "", _KNOWN)
    if given.get("name", "") not in ("", model):
        raise _refused("name", given["name"], f"{model!r}, or leave it out")
    for key, allowed in _MODELS_OWN.items():
        if given.get(key, "") not in ("", *allowed):
            raise _refused(key, given[key], f"{allowed[0]!r}, or leave it out")
    for key in _NOT_DONE:
        if _asks(given.get(key)):
            raise BadRequest(f"config: {key}: this server does not do that; leave it out")
    labels = {**_tensors(given, "input", inputs), **_tensors(given, "output", outputs)}
    priorities, queue, batching = _dynamic_batching(given.get("dynamic_batching", {}))
    rows, max_rows = _parameters(given.get("parameters", {}))
    if "max_batch_size" in given:
        batching["max_batch_size"] = _int(given["max_batch_size"])
    if rows is not None:
        batching["max_batch_size"] = rows
    if max_rows is not None:
        queue["max_rows"] = max_rows
    instances, gpus = _instances(given.get("instance_group", []))
    ours = {
        "instances": instances, "gpus": gpus,
        "versions": _versions(given.get("version_policy", {})),
        "batching": batching, "queue": queue, "priorities": priorities, "labels": labels,
    }  # fmt: skip
    return {key: value for key, value in ours.items() if value}


def _dynamic_batching(value: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(priorities, queue, batching)."""
    where = "dynamic_batching"
    given = _section(value, where, (
        "preferred_batch_size", "max_queue_delay_microseconds", "preserve_ordering", "priority_levels",
        "default_priority_level", "default_queue_policy", "priority_queue_policy",
    ))  # fmt: skip
    batching: dict[str, Any] = {}
    if "preferred_batch_size" in given:
        batching["preferred_batch_size"] = [_int(size) for size in _list(given, "preferred_batch_size", where)]
    if "max_queue_delay_microseconds" in given:
        batching["max_queue_delay_us"] = _int(given["max_queue_delay_microseconds"])
    if "preserve_ordering" in given:
        batching["preserve_ordering"] = given["preserve_ordering"]
    queue = _policy(given.get("default_queue_policy", {}), f"{where}.default_queue_policy")
    levels = _int(given.get("priority_levels", 0))
    policies = given.get("priority_queue_policy", {})
    if not isinstance(policies, dict):
        raise _refused(f"{where}.priority_queue_policy", policies, "an object of levels")
    if not levels:
        if policies or _asks(given.get("default_priority_level")):
            raise BadRequest(f"config: {where}: it has priorities but no priority_levels; expected both or neither")
        return {}, queue, batching
    priorities: dict[str, Any] = {"levels": levels}
    if _asks(given.get("default_priority_level")):
        priorities["default_level"] = _int(given["default_priority_level"])
    if policies:
        priorities["queue"] = {
            str(level): _policy(policy, f"{where}.priority_queue_policy.{level}") for level, policy in policies.items()
        }
    return priorities, queue, batching


def _policy(value: Any, where: str) -> dict[str, Any]:
    """Triton's ModelQueuePolicy; its default is that a request cannot shorten the timeout, ours that it can."""
    given = _section(value, where, (
        "timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size",
    ))  # fmt: skip
    if not given:
        return {}
    action = given.get("timeout_action", "REJECT")
    actions = {"REJECT": "reject", "DELAY": "delay", 0: "reject", 1: "delay"}
    if not isinstance(action, (str, int)) or action not in actions:
        raise _refused(f"{where}.timeout_action", action, "'REJECT' or 'DELAY'")
    return {
        "timeout_action": actions[action],
        "default_timeout_us": _int(given.get("default_timeout_microseconds", 0)),
        "allow_timeout_override": given.get("allow_timeout_override", False),
        "max_queue_size": _int(given.get("max_queue_size", 0)),
    }


def _versions(value: Any) -> Any:
    given = _section(value, "version_policy", ("latest", "all", "specific"))
    if not given:
        return None
    if len(given) > 1:
        raise _refused("version_policy", sorted(given), "exactly one of latest, all and specific")
    if "all" in given:
        return "all"
    if "latest" in given:
        latest = _section(given["latest"], "version_policy.latest", ("num_versions",))
        number = _int(latest.get("num_versions", 1))
        if number not in (0, 1):
            raise _refused("version_policy.latest.num_versions", number, "1; name more versions with specific")
        return "latest"
    specific = _section(given["specific"], "version_policy.specific", ("versions",))
    return [_int(number) for number in _list(specific, "versions", "version_policy.specific")]


def _instances(value: Any) -> tuple[int | None, list[int]]:
    """How many, and the numbers of GPUs, each of which has so many; none: all that there are."""
    if not isinstance(value, list):
        raise _refused("instance_group", value, "a list")
    groups = [_instance_group(group, f"instance_group.{index}") for index, group in enumerate(value)]
    on_gpu = [group for group in groups if group.gpus or group.kind == "KIND_GPU"]
    if not on_gpu:
        return sum(group.instances for group in groups) or None, []
    if len(on_gpu) < len(groups) or len({group.instances for group in groups}) > 1:
        raise BadRequest("config: instance_group: expected as many instances on each GPU, and none on the CPU beside")
    numbers = sorted({number for group in groups for number in group.gpus})
    return groups[0].instances, [] if any(not group.gpus for group in groups) else numbers


class _Group(NamedTuple):
    kind: str
    instances: int
    gpus: list[int]


def _instance_group(value: Any, where: str) -> _Group:
    given = _section(value, where, ("name", "kind", "count", "gpus", "passive", "host_policy", "profile"))
    kind = given.get("kind", "KIND_AUTO")
    if kind not in _KINDS:
        raise _refused(f"{where}.kind", kind, f"one of {', '.join(_KINDS)}")
    for key in ("passive", "host_policy", "profile"):
        if _asks(given.get(key)):
            raise BadRequest(f"config: {where}.{key}: this server does not do that; leave it out")
    count = _int(given.get("count", 1))
    if not isinstance(count, int) or count < 0:
        raise _refused(f"{where}.count", count, "a number of instances")
    gpus = [_int(number) for number in _list(given, "gpus", where)] if given.get("gpus") else []
    if any(not isinstance(number, int) or number < 0 for number in gpus) or (gpus and kind == "KIND_CPU"):
        raise _refused(f"{where}.gpus", gpus, "numbers of GPUs, and kind KIND_GPU or KIND_AUTO")
    return _Group(kind, count or 1, gpus)


def _parameters(value: Any) -> tuple[Any, Any]:
    given = _section(value, "parameters", (MAX_BATCH_ROWS, MAX_QUEUE_ROWS), _same)
    found = []
    for key in (MAX_BATCH_ROWS, MAX_QUEUE_ROWS):
        entry = _section(given.get(key, {}), f"parameters.{key}", ("string_value",))
        found.append(_int(entry["string_value"]) if "string_value" in entry else None)
    return found[0], found[1]


def _tensors(given: Mapping[str, Any], key: str, specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Check a description of tensors against the model; its label files by output."""
    known, labels = {spec.name: spec for spec in specs}, {}
    for index, value in enumerate(_list(given, key, "")):
        where = f"{key}.{index}"
        tensor = _section(value, where, ("name", "data_type", "dims", "format", "label_filename", *_TENSOR_NOT_DONE))
        name = tensor.get("name", "")
        if not isinstance(name, str) or (known and name not in known):
            raise _refused(f"{where}.name", name, f"one of {', '.join(known)}" if known else "a name")
        for option in _TENSOR_NOT_DONE:
            if _asks(tensor.get(option)):
                raise BadRequest(f"config: {where}.{option}: this server does not do that; leave it out")
        if tensor.get("format", "FORMAT_NONE") != "FORMAT_NONE":
            raise _refused(f"{where}.format", tensor["format"], "'FORMAT_NONE', or leave it out")
        if known:
            _agree(where, tensor, known[name])
        if _asks(tensor.get("label_filename")) and key == "output":
            labels[name] = tensor["label_filename"]
    return labels


def _agree(where: str, tensor: Mapping[str, Any], spec: TensorSpec) -> None:
    kind = datatype(spec.datatype).config_name
    if tensor.get("data_type", kind) != kind:
        raise _refused(f"{where}.data_type", tensor["data_type"], repr(kind))
    if "dims" in tensor:
        dims = [_int(dim) for dim in _list(tensor, "dims", where)]
        if not any(_fits(dims, shape) for shape in (spec.row_shape, spec.shape)):
            raise _refused(f"{where}.dims", dims, str(list(spec.row_shape)))


def _fits(dims: list[Any], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(want in (DYNAMIC, dim) for dim, want in zip(dims, shape, strict=True))


def _section(value: Any, where: str, known: Sequence[str], name: Callable[[str], str] | None = None) -> dict[str, Any]:
    """An object with none but known keys, in snake_case: protobuf's JSON writes maxBatchSize for max_batch_size."""
    if not isinstance(value, Mapping):
        raise _refused(where or "config", value, "an object")
    found = {(name or _snake)(str(key)): entry for key, entry in value.items()}
    for key in found:
        if key not in known:
            path = f"{where}.{key}" if where else key
            raise BadRequest(f"config: {path}: unknown key; allowed here: {', '.join(known)}")
    return found


def _snake(key: str) -> str:
    return _CAPITAL.sub(r"_\1", key).lower()


def _same(key: str) -> str:
    return key


def _list(given: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = given.get(key, [])
    if not isinstance(value, list):
        raise _refused(f"{where}.{key}" if where else key, value, "a list")
    return value


def _int(value: Any) -> Any:
    """Protobuf's JSON writes 64-bit integers as strings. Other values are left for the configuration's own check."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) else value


def _asks(value: Any) -> bool:
    """Whether a value asks for something: {"enable": false} and all that is empty do not."""
    if isinstance(value, Mapping):
        return any(_asks(entry) for entry in value.values())
    return bool(value)


def _refused(where: str, value: Any, expected: str) -> BadRequest:
    return BadRequest(f"config: {where} = {str(value)[:80]!r} is not allowed; expected {expected}")
