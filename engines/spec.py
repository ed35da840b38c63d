"""What the sender of a model asks of its build. One table, for the service (pydantic validates it) and the child."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

import msgspec

from engines.errors import ModelRefused

__all__ = ["ImageInput", "Metric", "Spec", "decode_spec", "encode_spec", "require_supported"]

Precision = Literal["auto", "fp32", "fp16", "int8", "binary"]
Metric = Literal["top1", "top5", "f1", "rmse", "mae", "cosine"]
Objective = Literal["throughput", "latency", "size"]
Search = Literal["grid", "random", "bayesian", "genetic"]
Target = Literal["openvino", "tensorrt-rtx", "tensorrt"]
_HIGHEST_BATCH = 65536


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """An input that clients send as UINT8 pixels, height by width by channels: a quarter of the bytes of floats.

    The model gets `(pixel - mean) / scale`, channels first. `mean` and `scale` have one number, or one a channel.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    datatype: Literal["UINT8"] = "UINT8"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or not self.scale:
            raise ValueError("mean and scale need one number, or one for each channel")
        if any(number == 0 for number in self.scale):
            raise ValueError("scale divides; none of its numbers may be 0")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All keys are optional. `accuracy_budget` is the largest loss allowed, absolute, in the unit of `metric`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Precision = "auto"
    metric: Metric | None = None
    accuracy_budget: float | None = None
    objective: Objective = "throughput"
    search: Search | None = None
    targets: tuple[Target, ...] = ("openvino",)
    max_batch: int = 32
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Sizes for the variable dimensions of an input, the first one left out: it carries the rows. -1 stays variable."""
    inputs: Mapping[str, ImageInput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.accuracy_budget is not None and not 0 <= self.accuracy_budget < float("inf"):
            raise ValueError("accuracy_budget must be a number from 0 on")
        if not 1 <= self.max_batch <= _HIGHEST_BATCH:
            raise ValueError(f"max_batch must be from 1 to {_HIGHEST_BATCH}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must name at least one target, and each once")
        for name, shape in self.shapes.items():
            if any(size < 1 and size != -1 for size in shape):
                raise ValueError(f"shapes.{name}: sizes must be from 1 on, or -1")


def require_supported(spec: Spec) -> None:
    """Raise ModelRefused for what is asked and cannot be done yet, by its name: nothing asked is ignored."""
    if spec.precision not in ("auto", "fp32"):
        raise ModelRefused(f"precision {spec.precision!r} is not built yet; expected auto or fp32")
    if spec.search is not None:
        raise ModelRefused(f"search {spec.search!r} is not built yet: with one precision there is nothing to search")
    for target in spec.targets:
        if target != "openvino":
            raise ModelRefused(f"target {target!r} is not built yet; expected openvino")


def encode_spec(spec: Spec) -> bytes:
    """Canonical JSON: equal specs give equal bytes, so that they may be part of a key."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":")).encode()


def decode_spec(data: bytes) -> Spec:
    """Read what `encode_spec` wrote. Raises ModelRefused where it is something else."""
    try:
        return msgspec.json.decode(data, type=Spec)
    except (msgspec.DecodeError, ValueError) as error:
        raise ModelRefused(f"the spec cannot be read: {error}") from error
