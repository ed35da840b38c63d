"""A model's optional `config.toml`: read, validated, and turned into serving's plain options.

A wrong key or value is answered with the key, the value, what is allowed, and the corrected line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.serving.limits import Limits, ModelOptions, QueueOptions, QueuePolicy
from engines.errors import BadRepository

__all__ = ["ModelConfig", "model_options", "read_config"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Batching(_Section):
    """How batches are formed."""

    max_batch_size: int | None = Field(None, ge=0, le=65536, examples=[32])
    preferred_batch_size: list[int] = Field(default_factory=list, examples=[[8, 32]])
    max_queue_delay_us: int = Field(0, ge=0, examples=[2000])
    preserve_ordering: bool = Field(False, examples=[True])

    @model_validator(mode="after")
    def _sizes_fit(self) -> Batching:
        limit = self.max_batch_size
        for size in self.preferred_batch_size:
            if size < 1 or (limit is not None and size > limit):
                fitting = [s for s in self.preferred_batch_size if s >= 1 and (limit is None or s <= limit)]
                raise ValueError(
                    f"preferred_batch_size from 1 to max_batch_size ({limit or 'unset'}), got {size}; "
                    f"for example: preferred_batch_size = {fitting}"
                )
        return self


class Policy(_Section):
    """Limits and timeouts of one priority level."""

    max_queue_size: int = Field(0, ge=0, examples=[64])
    default_timeout_us: int = Field(0, ge=0, examples=[100000])
    timeout_action: Literal["reject", "delay"] = Field("reject", examples=["reject"])
    allow_timeout_override: bool = Field(True, examples=[True])

    def plain(self) -> QueuePolicy:
        return QueuePolicy(
            max_queue_requests=self.max_queue_size,
            default_timeout_ns=self.default_timeout_us * 1000,
            allow_timeout_override=self.allow_timeout_override,
            delay_expired=self.timeout_action == "delay",
        )


class Queueing(Policy):
    """The policy of every level, and the bound over all of them."""

    max_rows: int | None = Field(None, ge=0, examples=[1024])


class Priorities(_Section):
    """Priority levels; 1 is the highest and starves the others while it has work."""

    levels: int = Field(ge=1, le=1000, examples=[2])
    default_level: int = Field(1, ge=1, examples=[1])
    queue: dict[str, Policy] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _levels_exist(self) -> Priorities:
        if self.default_level > self.levels:
            raise ValueError(f"a default_level from 1 to {self.levels}; for example: default_level = {self.levels}")
        for key in self.queue:
            if not (key.isascii() and key.isdigit() and 1 <= int(key) <= self.levels):
                raise ValueError(
                    f"sections [priorities.queue.N] with N from 1 to {self.levels}, got {key}; "
                    "for example: [priorities.queue.1]"
                )
        return self


class ModelConfig(_Section):
    """The whole file."""

    instances: int | None = Field(None, ge=1, le=64, examples=[2])
    streams: int | None = Field(None, ge=1, le=64, examples=[2])
    gpus: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=list, examples=[[0, 1]])
    versions: Literal["latest", "all"] | list[Annotated[int, Field(ge=0)]] = Field("latest", examples=["latest"])
    batching: Batching = Batching()
    queue: Queueing = Queueing()
    priorities: Priorities | None = None
    labels: dict[str, str] = Field(default_factory=dict)


def read_config(text: str, name: str = "config.toml") -> ModelConfig:
    """Parse and validate; BadRepository says every mistake in one message."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRepository(f"{name} is not TOML: {error}") from error
    except RecursionError as error:
        raise BadRepository(f"{name} is nested too deeply") from error
    return config_of(data, name)


def config_of(data: object, name: str) -> ModelConfig:
    """Validate a parsed configuration."""
    try:
        return ModelConfig.model_validate(data)
    except ValidationError as error:
        said = dict.fromkeys(_explain(found) for found in error.errors(include_url=False))
        raise BadRepository("; ".join(f"{name}: {text}" for text in said if text)) from error


def _explain(found: ErrorDetails) -> str:
    where = [str(part) for part in found["loc"]]
    if where[:1] == ["versions"]:  # one of two types: pydantic complains once for each, the first names the value
        if not where[-1].startswith("literal"):
            return ""
        allowed = '"latest", "all" or a list of version numbers; for example: versions = [1, 2]'
        return f"versions = {_toml(found['input'])} is not allowed; expected {allowed}"
    key, value = ".".join(where) or "the file", found["input"]
    if found["type"] == "extra_forbidden":
        return _unknown_key(where, value)
    if found["type"] == "missing":
        return f"{key} is missing; for example: {_example_line(where)}"
    if found["type"] == "model_type":
        return f"{key} = {_toml(value)} is not allowed; expected a section; for example: [{key}]"
    allowed = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    line = _example_line(where)
    return f"{key} = {_toml(value)} is not allowed; expected {allowed}" + (f"; for example: {line}" if line else "")


def _unknown_key(where: list[str], value: Any) -> str:
    section = _section(where[:-1])
    names = list(section.model_fields) if section else []
    said = f"{'.'.join(where)} = {_toml(value)}: unknown key; allowed here: {', '.join(names)}"
    home = next((path for path in _PLACES if path != where[:-1] and where[-1] in _fields(path)), None)
    if home is not None:
        line = _example_line([*home, where[-1]]) or f"[{where[-1]}]"
        return f"{said}; it belongs {f'in [{home[0]}]' if home else 'above all sections'}; for example: {line}"
    close = difflib.get_close_matches(where[-1], names, n=1, cutoff=0.4)
    if not close:
        examples = (_example_line([*where[:-1], name]) for name in names)
        return f"{said}; for example: {next(filter(None, examples), '')}"
    right = ".".join([*where[:-1], close[0]])
    return f"{said}; did you mean: " + (f"[{right}]" if isinstance(value, dict) else f"{close[0]} = {_toml(value)}")


def _fields(where: list[str]) -> Collection[str]:
    section = _section(where)
    return section.model_fields if section else ()


_PLACES: list[list[str]] = [[], ["batching"], ["queue"], ["priorities"]]


def _section(where: list[str]) -> type[BaseModel] | None:
    """The model class that holds the keys under a path."""
    known: dict[str, type[BaseModel]] = {
        "": ModelConfig, "batching": Batching, "queue": Queueing, "priorities": Priorities,
    }  # fmt: skip
    if len(where) == 3 and where[:2] == ["priorities", "queue"]:
        return Policy
    return known.get(".".join(where))


def _example_line(where: list[str]) -> str:
    if where[:1] == ["labels"] and len(where) == 2:
        return f'{_key(where[1])} = "labels.txt"'
    for cut in (len(where), len(where) - 1):
        section = _section(where[: cut - 1]) if cut >= 1 else None
        field = section.model_fields.get(where[cut - 1]) if section else None
        if field is not None and field.examples:
            return f"{where[cut - 1]} = {_toml(field.examples[0])}"
    return ""


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    return str(value)


def model_options(
    config: ModelConfig, folder: Path, *, batchable: bool, max_batch_rows: int, max_queue_rows: int,
    enough_rows: int = 0, outputs: Collection[str] | None = None,
) -> ModelOptions:  # fmt: skip
    """Serving's options of one version. Raises BadRepository where a labels file is missing, or names no output.

    `batchable` is the build's proof: without it there is no batching, whatever the file asks for. `enough_rows` is the
    size that it found to be as fast as any, preferred where the file says nothing of sizes (0 = there is none).
    """
    asked = config.batching.max_batch_size
    rows = 0 if not batchable else max_batch_rows if asked is None else asked
    queue, priorities = config.queue, config.priorities
    preferred = config.batching.preferred_batch_size
    if enough_rows and asked is None and not preferred:
        preferred = [enough_rows]
    for name in config.labels:
        if outputs is not None and name not in outputs:
            close = difflib.get_close_matches(name, outputs, n=1, cutoff=0.0)
            raise BadRepository(
                f"config.toml: labels.{name} names no output of the model; expected one of {', '.join(outputs)}"
                + (f"; for example: {_key(close[0])} = {_toml(config.labels[name])}" if close else "")
            )
    return ModelOptions(
        limits=Limits(
            max_batch_rows=rows,
            preferred_rows=tuple(sorted(size for size in preferred if size <= rows)),
            max_queue_delay_ns=config.batching.max_queue_delay_us * 1000,
        ),
        queue=QueueOptions(
            max_rows=max_queue_rows if queue.max_rows is None else queue.max_rows,
            levels=priorities.levels if priorities else 0,
            default_level=priorities.default_level if priorities else 0,
            policy=queue.plain(),
            level_policies=MappingProxyType(
                {int(level): policy.plain() for level, policy in priorities.queue.items()} if priorities else {}
            ),
        ),
        instances=config.instances,
        gpus=tuple(dict.fromkeys(config.gpus)),
        streams=config.streams,
        labels=MappingProxyType({output: _labels(folder, file) for output, file in config.labels.items()}),
        label_files=MappingProxyType(dict(config.labels)),
        preserve_ordering=config.batching.preserve_ordering,
        version_policy=config.versions if isinstance(config.versions, str) else ",".join(map(str, config.versions)),
    )


def _labels(folder: Path, file: str) -> tuple[str, ...]:
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadRepository(f"config.toml: labels file {file!r} lies outside the model's folder")
    try:
        return tuple(path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadRepository(
            f"config.toml: labels file {file!r} cannot be read: expected one label a line in UTF-8"
        ) from error
