"""How long the end of a batch takes from the thread that waits for a GPU to the event loop, while that is busy.

The thread sleeps as one that waits for an event of CUDA, without the interpreter's lock. Awake, it needs the lock, and
asks after the switch interval; but whenever the loop lets go of the lock for an instant, as each turn does, CPython
begins to count that interval anew. So a thread may starve beside turns that are shorter. No GPU is in it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
import uvloop

from app.server import SWITCH_INTERVAL_S

__all__ = ["run"]

COMMAND = "python -m benchmarks completion"
_USUAL_S = 0.005
"""Python's own switch interval."""
SECONDS, WAIT_S, ROUNDS = 2.0, 0.0005, 3
TURNS_S = 0.001, 0.0002
"""What the loop does in one turn."""


def _work(until_s: float) -> int:
    """Python's, without a call that lets go of the lock."""
    count = 0
    while time.perf_counter() < until_s:
        count += 1
    return count


async def _latencies_us(interval_s: float, turn_s: float) -> list[float]:
    """Of every end, from when its wait was over until the loop has it; the last one has it when the loop is idle."""
    loop, found, is_over = asyncio.get_running_loop(), list[float](), threading.Event()
    sys.setswitchinterval(interval_s)

    def told(due_s: float) -> None:
        found.append(1e6 * (time.perf_counter() - due_s))

    def wait() -> None:
        while not is_over.is_set():
            due_s = time.perf_counter() + WAIT_S
            time.sleep(WAIT_S)
            loop.call_soon_threadsafe(told, due_s)

    thread = threading.Thread(target=wait)
    thread.start()
    until_s = time.perf_counter() + SECONDS
    while time.perf_counter() < until_s:  # requests are parsed and answered all the time
        _work(time.perf_counter() + turn_s)
        await asyncio.sleep(0)
    is_over.set()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0.05)
    return found


def run() -> dict[str, Any]:
    """Both intervals in turn, medians of rounds."""
    before_s = sys.getswitchinterval()
    try:
        rows = [_row(turn_s) for turn_s in TURNS_S]
    finally:
        sys.setswitchinterval(before_s)
    return {"rows": rows, "command": COMMAND}


def _row(turn_s: float) -> dict[str, str]:
    found: dict[float, list[tuple[float, float]]] = {_USUAL_S: [], SWITCH_INTERVAL_S: []}
    for _ in range(ROUNDS):
        for interval_s, rounds in found.items():
            latencies = uvloop.run(_latencies_us(interval_s, turn_s))
            rounds.append((float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99))))
    said = [
        f"{statistics.median(p50 for p50, _ in rounds) / 1000:.2f} and "
        f"{statistics.median(p99 for _, p99 in rounds) / 1000:.2f} ms ({1000 * interval_s:g} ms)"
        for interval_s, rounds in found.items()
    ]
    what = (
        f"end of a wait in a thread until an event loop has it that is busy in turns of {1000 * turn_s:g} ms, by the "
        "interpreter's switch interval: p50 and p99"
    )
    return {"what": what, "measured": ", ".join(said), "goal": "-", "command": COMMAND}
