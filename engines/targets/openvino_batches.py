"""How many rows a batch needs. Measures; what that means for the server is decided elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import openvino as ov

from engines.reference import Arrays
from engines.targets.openvino import filled_requests, timed

__all__ = ["enough_rows", "smallest_as_fast"]

_SIZES = (1, 2, 4, 8, 16)
_AS_FAST = 0.97
_LEAST_RUN_S = 0.04
"""A batch has a cost of its own, most of it caches that went cold between two runs, which no loop of runs shows:
ResNet-18 behind HTTP took 3 % more CPU time a row in batches that run for 30 ms than in those of 60 ms.
"""
_ROUNDS, _BUDGET_S = 5, 2.0


def enough_rows(compiled: ov.CompiledModel, batch_of: Callable[[int], Arrays], expected_rows_per_s: float) -> int:
    """The rows beyond which batches get no faster by 3 %, all streams busy; 0 where they do, or where they are short.

    Larger batches are then of no use: they take longer to answer, and more memory. Interleaved, the best of up to 5
    rounds (others on this machine make runs slower, never faster), none begun after 2 s. With a stream for each
    thread, CPU time is what counts, which others change the least; threads that share a stream wait for each other.
    `expected_rows_per_s` says which sizes take long enough to be worth a look.
    """
    streams = int(compiled.get_property("NUM_STREAMS"))
    sizes = [rows for rows in _SIZES if rows * streams >= expected_rows_per_s * _LEAST_RUN_S]
    if len(sizes) < 2:
        return 0
    pools = [filled_requests(compiled, batch_of(rows), streams) for rows in sizes]
    speeds: list[list[float]] = [[] for _ in sizes]
    started = time.monotonic()
    for number in range(_ROUNDS):
        if number and time.monotonic() - started > _BUDGET_S:
            break
        for rows, pool, speed in zip(sizes, pools, speeds, strict=True):
            found = timed(pool)
            speed.append(rows / (found.cpu_s_per_run if streams > 1 else found.wall_s_per_run))
    return smallest_as_fast(sizes, [max(speed) for speed in speeds])


def smallest_as_fast(sizes: Sequence[int], speeds: Sequence[float]) -> int:
    """The first of ascending sizes that is as fast as any; 0 where that is the largest, since more may be faster."""
    enough = next(rows for rows, speed in zip(sizes, speeds, strict=True) if speed >= _AS_FAST * max(speeds))
    return 0 if enough == sizes[-1] else enough
