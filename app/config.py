"""A model's optional `config.toml`: read, validated, and turned into serving's plain options.

A wrong key or value is answered with the key, the value, what is allowed, and the corrected line.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

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
                raise ValueError(
                    f"preferred_batch_size must be from 1 to max_batch_size ({limit or 'unset'}), got {size}"
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
        named = [self.default_level, *(int(key) if key.isdigit() else 0 for key in self.queue)]
        for level in named:
            if not 1 <= level <= self.levels:
                raise ValueError(
                    f"levels run from 1 to {self.levels}; default_level or a [priorities.queue.N] lies outside"
                )
        return self


class ModelConfig(_Section):
    """The whole file."""

    instances: int | None = Field(None, ge=1, le=64, examples=[2])
    versions: Literal["latest", "all"] | list[int] = Field("latest", examples=["latest"])
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
    return config_of(data, name)


def config_of(data: object, name: str) -> ModelConfig:
    """Validate a parsed configuration."""
    try:
        return ModelConfig.model_validate(data)
    except ValidationError as error:
        raise BadRepository("; ".join(f"{name}: {_explain(found)}" for found in error.errors())) from error


def _explain(found: ErrorDetails) -> str:
    where = [
        str(part) for part in found["loc"] if not (isinstance(part, str) and part.startswith(("literal", "list[")))
    ]
    key, value = ".".join(where) or "the file", found["input"]
    if found["type"] == "extra_forbidden":
        return _unknown_key(where, value)
    allowed = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    line = _example_line(where)
    return f"{key} = {_toml(value)} is not allowed; expected {allowed}" + (f"; for example: {line}" if line else "")


def _unknown_key(where: list[str], value: Any) -> str:
    section = _section(where[:-1])
    names = list(section.model_fields) if section else []
    close = difflib.get_close_matches(where[-1], names, n=1, cutoff=0.4)
    said = f"{'.'.join(where)} = {_toml(value)}: unknown key; allowed here: {', '.join(names)}"
    return f"{said}; did you mean: {close[0]} = {_toml(value)}" if close else said


def _section(where: list[str]) -> type[BaseModel] | None:
    """The model class that holds the keys under a path."""
    known: dict[str, type[BaseModel]] = {
        "": ModelConfig, "batching": Batching, "queue": Queueing, "priorities": Priorities,
    }  # fmt: skip
    if len(where) == 3 and where[:2] == ["priorities", "queue"]:
        return Policy
    return known.get(".".join(where))


def _example_line(where: list[str]) -> str:
    for cut in (len(where), len(where) - 1):
        section = _section(where[: cut - 1]) if cut >= 1 else None
        field = section.model_fields.get(where[cut - 1]) if section else None
        if field is not None and field.examples:
            return f"{where[cut - 1]} = {_toml(field.examples[0])}"
    return ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    return str(value)


def model_options(
    config: ModelConfig, folder: Path, *, batchable: bool, max_batch_rows: int, max_queue_rows: int
) -> ModelOptions:
    """Serving's options of one version. Raises BadRepository where a labels file is missing.

    `batchable` is the build's proof: without it there is no batching, whatever the file asks for.
    """
    asked = config.batching.max_batch_size
    rows = 0 if not batchable else max_batch_rows if asked is None else asked
    queue, priorities = config.queue, config.priorities
    return ModelOptions(
        limits=Limits(
            max_batch_rows=rows,
            preferred_rows=tuple(sorted(size for size in config.batching.preferred_batch_size if size <= rows)),
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
        labels=MappingProxyType({output: _labels(folder, file) for output, file in config.labels.items()}),
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
