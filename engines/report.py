"""The report of a build: what was read, what each pass changed, what was measured, and what was chosen. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from engines.errors import PlanInvalid
from engines.tensor import ShapeRange

__all__ = [
    "Accuracy", "Candidate", "Layer", "PassChange", "Report", "Speed", "TargetReport", "WorstSample", "change_of",
    "decode_report", "encode_report",
]  # fmt: skip


class PassChange(msgspec.Struct, frozen=True):
    """What one pass did to the graph. `note` says why it did nothing, where that needs a reason."""

    name: str
    nodes_before: int
    nodes_after: int
    removed: dict[str, int]
    """Operators of which there are fewer than before, and how many fewer."""
    added: dict[str, int]
    note: str = ""


class Layer(msgspec.Struct, frozen=True):
    """One operation of the engine as it runs: its kernel is the runtime's own name for the code."""

    name: str
    op_type: str
    precision: str
    kernel: str
    source: str = ""
    """Names of the model's nodes that it computes."""
    time_us: float | None = None
    """Of one run; None where it was not timed."""
    weight_bytes_saved: int = 0
    """By weights of one bit, beside FP32."""


class Speed(msgspec.Struct, frozen=True):
    """Medians, measured on the machine that built: one request of `rows` alone, and `streams` of them side by side."""

    rows: int
    latency_us: float
    rows_per_s: float
    streams: int


class WorstSample(msgspec.Struct, frozen=True):
    """A sample on which engine and reference differ much, in the output where they do so most.

    `difference` is the largest |engine - reference|, for whole numbers how many are unequal; None where only one of
    the two is a finite number. `bound` is what rounding explains.
    """

    index: int
    output: str
    difference: float | None
    bound: float


class Accuracy(msgspec.Struct, frozen=True):
    """The engine's answers beside the reference's (ONNX Runtime, graph optimizations off).

    `metric` is taken of `output`, against the truth that came with the samples, else (`against` is "reference")
    against the reference's answers. A value is None where it is not a number. `shares` are differences as shares of
    their bounds, each the largest of `samples_per_share` samples in a row; None as in `WorstSample`.
    """

    samples: int
    available: int
    """How many there were; fewer were run where time was short."""
    synthetic: bool
    over_bound: int
    """Samples that differ by more than their bound."""
    worst: tuple[WorstSample, ...]
    shares: tuple[float | None, ...]
    samples_per_share: int
    metric: str
    against: str
    output: str
    reference_value: float | None
    value: float | None
    loss: float | None
    """How much worse `value` is than `reference_value`, in the metric's unit; negative where it is better."""
    interval: tuple[float, float] | None
    """The loss lies between these with 95 %, as far as samples like these tell; None where they cannot."""
    decisions_changed: int | None
    """Samples whose largest score is another than the reference's; None where the output is no list of scores."""
    decisions_interval: tuple[float, float] | None = None
    """The share of all samples that `decisions_changed` stands for lies between these with 95 %."""
    others: dict[str, float] = {}
    """What the outputs lose that the metric is not taken of: 1 - cosine, for whole numbers the share unequal."""
    tolerance: float | None = None
    """The bound of floats, as a share of the largest |answer| that the reference gives to a sample."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that was tried: judged by its own answers, and timed beside the others where it runs here.

    `latency_us` is that of one row alone, `rows_per_s` that of many; None: not measured here. `loss` and the intervals
    as in `Accuracy`. `judged_by` is the runtime that gave the answers. `float_layers` are the layers of an INT8 graph
    that stayed in floating point.
    """

    name: str
    precision: str
    target: str
    judged_by: str
    metric: str
    value: float | None
    loss: float | None
    interval: tuple[float, float] | None
    decisions_changed: int | None
    samples: int
    decisions_interval: tuple[float, float] | None = None
    latency_us: float | None
    rows_per_s: float | None
    size_bytes: int
    passed: bool
    reason: str = ""
    on_front: bool = False
    """No other candidate that passed loses less and is better by the objective."""
    int8_layers: int = 0
    float_layers: tuple[str, ...] = ()
    trial: bool = False
    """One of many of a search: judged by fewer samples, its speed estimated by a short comparison with FP32."""


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one target that was asked for, or of some of its GPUs. `chosen` is the candidate that it runs.

    `network` counts layers of a TensorRT network by type and datatype, as it was parsed; `profiles` are the smallest,
    best and largest shapes of its inputs, `gpus` what its plan was built for. Nothing of it has run here.
    """

    target: str
    made: bool
    reason: str = ""
    """Why it could not be made."""
    chosen: str = ""
    precision: str = ""
    size_bytes: int = 0
    seconds: float = 0.0
    version: str = ""
    gpus: tuple[str, ...] = ()
    compatibility: str = "none"
    profiles: tuple[dict[str, ShapeRange], ...] = ()
    profile_sets: int = 1
    network: dict[str, int] = {}
    warnings: tuple[str, ...] = ()
    file: str = ""
    binary: str = ""
    """How binary layers run, if there are any; `plugins` counts them by operator where they are plugins."""
    plugins: dict[str, int] = {}
    binary_weight_bytes: int = 0
    """What the weights of binary layers take: one bit each, or one byte."""
    guards: tuple[str, ...] = ()
    """What its guards count, as a manifest's."""


class Report(msgspec.Struct, frozen=True):
    """All sizes in bytes, all times in the unit of their name."""

    model: str
    source_format: str
    opset: int
    nodes: int
    parameters: int
    source_bytes: int
    operators: dict[str, int]
    inputs: dict[str, str]
    """Datatype and shape in words, such as "FP32 [rows, 3, 224, 224]"."""
    outputs: dict[str, str]
    passes: tuple[PassChange, ...]
    accuracy: Accuracy
    candidates: tuple[Candidate, ...]
    chosen: str
    """Name of a candidate that passed."""
    layers: tuple[Layer, ...]
    speeds: tuple[Speed, ...]
    max_batch: int
    batched: bool
    batching: str
    """Why requests share a batch, or why not."""
    engine_bytes: int
    peak_memory_bytes: int
    """Resident memory of the build at its highest."""
    build_s: float
    stages_s: dict[str, float]
    spec: dict[str, object]
    tools: dict[str, str]
    hashes: dict[str, str]
    hardware: str
    created: str
    notes: tuple[str, ...] = ()
    budget: float | None = None
    """The largest loss that was allowed, in the unit of `accuracy.metric`; None where any was."""
    targets: tuple[TargetReport, ...] = ()
    decisions_count: bool = False
    """The share of samples whose largest score is another than the reference's was held against the budget too."""


def change_of(name: str, before: Mapping[str, int], after: Mapping[str, int], note: str = "") -> PassChange:
    """What a pass did, from the operators before it and after it."""
    removed, added = Counter(before), Counter(after)
    return PassChange(name, removed.total(), added.total(), dict(removed - added), dict(added - removed), note)


def encode_report(report: Report) -> bytes:
    """JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode_report(data: bytes) -> Report:
    """What `encode_report` wrote. Raises PlanInvalid where it is something else."""
    try:
        return msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanInvalid(f"the report is not readable: {error}") from error
