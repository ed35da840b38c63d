"""What is asked of a TensorRT builder, and what it made: plain data, which crosses from process to process as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

from engines.tensor import ShapeRange

__all__ = ["BuiltPlan", "PlanOptions", "network_counts"]

Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`profiles` hold the range of every input with variable dimensions: one profile for all sizes, or several.

    `sms` are the GPUs to build for, as 10 * major + minor of their compute capability; none: the one that is here.
    `timing_cache` is a folder where measured kernel times are kept, for TensorRT alone.
    """

    profiles: tuple[dict[str, ShapeRange], ...]
    sms: tuple[int, ...] = ()
    workspace_bytes: int = 2**32
    is_sparse: bool = False
    compatibility: Compatibility = "none"
    timing_cache: str | None = None
    has_plugins: bool = False
    """Of `engines.plugins.gpu`: the graph asks for them."""


class BuiltPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a builder said of the plan that it left. `network` counts (operator, datatype of its first output) of the
    network as it was parsed, in the words "CONVOLUTION FP16" (plugins by their own names): strong typing makes them
    final.
    """

    library: str
    version: str
    sms: tuple[int, ...]
    network: dict[str, int]
    seconds: float
    size_bytes: int
    warnings: tuple[str, ...] = ()
    """Of the builder; those of the parser are errors."""


def network_counts(layers: list[tuple[str, str]]) -> dict[str, int]:
    """(Operator, datatype) pairs, counted, in the order of the alphabet."""
    counts: dict[str, int] = {}
    for operator, datatype in layers:
        key = f"{operator} {datatype}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
