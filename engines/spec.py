"""What the sender of a model asks of its build. One table, for the service (pydantic validates it) and the child."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

import msgspec

from engines.errors import ModelRefused

__all__ = [
    "LABEL_METRICS", "USUAL_BATCH", "Calibrator", "ImageInput", "Metric", "Search", "Sparsity", "Spec",
    "decode_spec", "encode_spec", "require_calibration", "require_supported", "require_truth",
]  # fmt: skip

Precision = Literal["auto", "fp32", "fp16", "int8", "binary"]
Metric = Literal["top1", "top5", "f1", "rmse", "mae", "cosine"]
Objective = Literal["throughput", "latency", "size"]
Search = Literal["greedy", "grid", "random", "bayesian", "genetic"]
Sparsity = Literal["2:4", "channels"]
Calibrator = Literal["minmax", "mean_minmax", "percentile", "mse"]
Target = Literal["openvino", "tensorrt-rtx", "tensorrt"]

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

LABEL_METRICS: frozenset[Metric] = frozenset({"top1", "top5", "f1"})
"""These compare classes with labels; the others compare values with targets, or with the reference's answers."""

USUAL_BATCH = 32
"""Rows that a build thinks of where no `max_batch` is asked for."""

_HIGHEST_BATCH = 65536
_MOST_PROFILE_SETS, _MOST_PROFILES = 16, 64
_MOST_TRIALS = 10_000
_GPU = re.compile(r"sm[1-9][0-9]{1,2}")
_HIGHEST_SIZE = 2**31 - 1
_STRICT = {"extra": "forbid", "strict": True}
"""For pydantic: a misspelt key or a number in quotes is an error, not a guess."""


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """An input that clients send as UINT8 pixels: a quarter of the bytes of floats.

    The model gets `(pixel - mean) / scale`, in its own datatype and with its own axes: [rows, channels, height, width]
    where `layout` is NHWC (pixels arrive as [rows, height, width, channels]), unchanged where it is NCHW. `mean` and
    `scale` have one number, or one for each channel.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    datatype: Literal["UINT8"] = "UINT8"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):
            numbers = tuple(float(number) + 0.0 for number in getattr(self, name))  # 1 is 1.0, and -0.0 is 0.0
            if not numbers or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} needs one finite number, or one for each channel")
            object.__setattr__(self, name, numbers)
        if 0.0 in self.scale:
            raise ValueError("scale divides; none of its numbers may be 0")
        if len({len(self.mean), len(self.scale)} - {1}) > 1:
            raise ValueError("mean and scale need the same count of numbers, or one")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All keys are optional. `accuracy_budget` is the largest loss allowed, absolute, in the unit of `metric`, which
    is taken of `output` (needed only where the labels or targets could be about several).

    Where INT8 breaks the budget, `search` says how layers are chosen that stay in floating point, over `trials` engines
    at most. `time_limit_s` bounds the making and judging of all that is tried beside the FP32 engine (halves, pruned
    forms, INT8, the search); it is looked at between steps. One variant is always tried, and where INT8 is asked for,
    one of INT8. While no INT8 is good enough, half of it is left for the search, and 10 s at least, or `time_limit_s`
    if that is less. What comes before and after is outside of it: the FP32 engine and its proof, the race, the proof of
    the winner.

    `calibrator` is how ranges of activations follow from samples. `sparsity` removes two of every four weights, or
    whole filters, where the budget allows it and it is better by the objective. A CPU gains nothing by zeros, so that
    two of four weights are removed only where a GPU is among the targets, and then for all of them.

    `targets` are what engines are made for: without them the CPU, and the GPU that is where it is built. That of the
    CPU (openvino) always is: it serves wherever another cannot.
    Of GPU plans, `gpus` are those built for, such as "sm86" (TensorRT-RTX: sm80, sm86, sm89 and sm120 without it;
    TensorRT: the one that is here), `buckets` are numbers of rows that each get a profile of their own (one profile
    from 1 row to `max_batch` without them), `workspace_bytes` is the memory that a kernel may use beside its tensors,
    `hardware_compatibility` lets TensorRT build for more than the GPU that is here, and `profile_sets` is how often the
    plan has its profiles: as often as there are instances, where a library does not let two run on one at once.

    `shapes` gives sizes to the variable dimensions of an input, the first one left out since it carries the rows; -1
    stays variable. `max_batch` counts rows; without it, the server's setting holds.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    precision: Precision = "auto"
    metric: Metric | None = None
    output: str | None = None
    accuracy_budget: float | None = None
    objective: Objective = "throughput"
    search: Search = "greedy"
    trials: int = 64
    time_limit_s: float = 60.0
    seed: int = 0
    calibrator: Calibrator | None = None
    sparsity: Sparsity | None = None
    targets: tuple[Target, ...] | None = None
    gpus: tuple[str, ...] = ()
    buckets: tuple[int, ...] = ()
    workspace_bytes: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    profile_sets: int = 1
    max_batch: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, ImageInput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.accuracy_budget is not None:
            if not 0 <= self.accuracy_budget < math.inf:
                raise ValueError("accuracy_budget must be a finite number from 0 on")
            object.__setattr__(self, "accuracy_budget", float(self.accuracy_budget) + 0.0)
        if not 1 <= self.trials <= _MOST_TRIALS:
            raise ValueError(f"trials must be from 1 to {_MOST_TRIALS}")
        if not 0 < self.time_limit_s < math.inf:
            raise ValueError("time_limit_s must be a finite number above 0")
        object.__setattr__(self, "time_limit_s", float(self.time_limit_s))
        if self.max_batch is not None and not 1 <= self.max_batch <= _HIGHEST_BATCH:
            raise ValueError(f"max_batch must be from 1 to {_HIGHEST_BATCH}")
        if self.targets is not None and (not self.targets or len(set(self.targets)) != len(self.targets)):
            raise ValueError("targets must name at least one target, and each once")
        self._check_gpus()
        for name, shape in self.shapes.items():
            if any(size != -1 and not 1 <= size <= _HIGHEST_SIZE for size in shape):
                raise ValueError(f"shapes.{name}: sizes must be from 1 to {_HIGHEST_SIZE}, or -1")
        object.__setattr__(self, "shapes", {name: tuple(shape) for name, shape in self.shapes.items()})

    def _check_gpus(self) -> None:
        if not all(map(_GPU.fullmatch, self.gpus)) or len(set(self.gpus)) != len(self.gpus):
            raise ValueError("gpus must be names such as sm86, each once: 10 * major + minor of a compute capability")
        if list(self.buckets) != sorted(set(self.buckets)) or not all(1 <= b <= _HIGHEST_BATCH for b in self.buckets):
            raise ValueError(f"buckets must be rising numbers of rows from 1 to {_HIGHEST_BATCH}")
        if self.buckets and self.max_batch is None:
            object.__setattr__(self, "max_batch", self.buckets[-1])
        if self.buckets and self.buckets[-1] != self.max_batch:
            raise ValueError("the last of buckets must be max_batch, or batches of that size would fit none")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError("workspace_bytes must be at least 1")
        if not 1 <= self.profile_sets <= _MOST_PROFILE_SETS:
            raise ValueError(f"profile_sets must be from 1 to {_MOST_PROFILE_SETS}")
        if max(1, len(self.buckets)) * self.profile_sets > _MOST_PROFILES:
            raise ValueError(f"buckets times profile_sets are the plan's profiles: at most {_MOST_PROFILES}")
        of_gpus = (self.gpus, self.buckets, self.hardware_compatibility != "none", self.profile_sets != 1)
        if not self.gpu_targets and any(of_gpus):
            raise ValueError(
                "gpus, buckets, hardware_compatibility and profile_sets are for targets tensorrt-rtx and tensorrt"
            )

    @property
    def gpu_targets(self) -> tuple[Target, ...]:
        """Those of `targets` that are not the CPU."""
        return tuple(target for target in self.targets or () if target != "openvino")


def require_supported(spec: Spec) -> None:
    """Raise ModelRefused for what is asked and cannot be done, by its name: nothing asked is ignored."""
    if spec.precision == "binary":
        raise ModelRefused("precision 'binary' is not built yet; expected auto, fp32, fp16 or int8")
    if spec.precision == "fp16" and spec.sparsity is not None:
        raise ModelRefused(f"precision 'fp16' of a pruned model is not built yet; leave out sparsity {spec.sparsity!r}")


def require_truth(spec: Spec, truth: Literal["labels", "targets"] | None, *, has_samples: bool = True) -> None:
    """Raise ModelRefused where what is asked needs other samples; `truth` is what the validation set holds."""
    if spec.accuracy_budget is not None and not has_samples:
        raise ModelRefused("accuracy_budget needs samples to judge by: send `validation`, or `calibration`")
    is_error = spec.metric in ("rmse", "mae")
    if is_error and truth is None and has_samples and spec.accuracy_budget is None and spec.precision != "fp32":
        raise ModelRefused(
            f"metric {spec.metric!r} without targets is 0 for the reference itself: say by accuracy_budget how much is "
            "allowed"
        )
    if spec.metric is not None:
        _require_fitting(spec.metric, truth)


def require_calibration(spec: Spec, *, has_calibration: bool) -> None:
    """Raise ModelRefused where INT8 or pruning is asked for and nothing tells what activations are like."""
    if spec.sparsity is not None and not has_calibration:
        raise ModelRefused(
            f"sparsity {spec.sparsity!r} needs calibration samples: send `calibration`, an .npz of inputs"
        )
    if spec.precision == "int8" and not has_calibration:
        raise ModelRefused("precision 'int8' needs calibration samples: send `calibration`, an .npz of inputs")


def _require_fitting(metric: Metric, truth: Literal["labels", "targets"] | None) -> None:
    if metric in LABEL_METRICS:
        if truth != "labels":
            raise ModelRefused(f"metric {metric!r} needs a validation set with 'labels', one class number a sample")
    elif truth == "labels":
        raise ModelRefused(f"metric {metric!r} compares values, the validation set has 'labels'; expected 'targets'")


def encode_spec(spec: Spec) -> bytes:
    """Canonical JSON: equal specs give equal bytes, so that they may be part of a key."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_spec(data: bytes) -> Spec:
    """Read a spec from JSON. Raises ModelRefused where it is something else, or has a key that is not one of a spec."""
    try:
        _check_keys(msgspec.json.decode(data))
        return msgspec.json.decode(data, type=Spec)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ModelRefused(f"the spec cannot be read: {error}") from error


def _check_keys(read: Any) -> None:
    """Left to itself, msgspec passes over the keys of a dataclass that it does not know."""
    for where, keys, known in _levels(read):
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key[:64], known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
                raise ModelRefused(f"the spec has an unknown key {(where + key)[:200]!r}; {hint}")


def _levels(read: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    if isinstance(read, dict):
        yield "", list(read), [item.name for item in fields(Spec)]
        inputs = read.get("inputs")
        for name, image in inputs.items() if isinstance(inputs, dict) else ():
            if isinstance(image, dict):
                yield f"inputs.{name}.", list(image), [item.name for item in fields(ImageInput)]
