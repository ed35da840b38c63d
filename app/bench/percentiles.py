"""Percentiles of latencies that were measured (nearest rank): none lies between two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["NAMES", "latency_ms"]

_RANKS = (50.0, 90.0, 95.0, 99.0, 99.9)
NAMES = tuple(f"p{rank:g}" for rank in _RANKS)


def latency_ms(latencies_ns: Sequence[int] | np.ndarray) -> dict[str, float] | None:
    """Mean, deviation, extremes and percentiles in milliseconds; None of nothing."""
    found = np.asarray(latencies_ns, np.int64)
    if not found.size:
        return None
    ranks = np.percentile(found, _RANKS, method="inverted_cdf")
    in_ns = {
        "mean": found.mean(), "stddev": found.std(), "min": found.min(),
        **dict(zip(NAMES, ranks, strict=True)), "max": found.max(),
    }  # fmt: skip
    return {name: round(float(value) / 1e6, 4) for name, value in in_ns.items()}
