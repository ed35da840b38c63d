"""How long the end of a batch takes from the thread that waits for a GPU to the event loop, while that is busy.

The thread sleeps as one that waits for an event of CUDA, without the interpreter's lock. Awake, it needs the lock,
which a busy loop gives up after the switch interval alone. No GPU is in it.
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
WAITS, WAIT_S, ROUNDS, SLICE_S = 400, 0.0005, 5, 0.0002


def _work(until_s: float) -> int:
    """Python's, without a call that lets go of the lock."""
    count = 0
    while time.perf_counter() < until_s:
        count += 1
    return count


async def _latencies_us(interval_s: float) -> list[float]:
    """Of every end, from when its wait was over until the loop has it."""
    loop, found, ended = asyncio.get_running_loop(), list[float](), asyncio.Event()
    sys.setswitchinterval(interval_s)

    def told(due_s: float, *, last: bool) -> None:
        found.append(1e6 * (time.perf_counter() - due_s))
        if last:
            ended.set()

    def wait() -> None:
        for number in range(WAITS):
            due_s = time.perf_counter() + WAIT_S
            time.sleep(WAIT_S)
            loop.call_soon_threadsafe(lambda due=due_s, at=number: told(due, last=at == WAITS - 1))

    thread = threading.Thread(target=wait)
    thread.start()
    while not ended.is_set():  # requests are parsed and answered all the time
        _work(time.perf_counter() + SLICE_S)
        await asyncio.sleep(0)
    thread.join()
    return found


def run() -> dict[str, Any]:
    """Both intervals in turn, medians of rounds."""
    before_s = sys.getswitchinterval()
    found: dict[float, list[tuple[float, float]]] = {_USUAL_S: [], SWITCH_INTERVAL_S: []}
    try:
        for _ in range(ROUNDS):
            for interval_s, rounds in found.items():
                latencies = uvloop.run(_latencies_us(interval_s))
                rounds.append((float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99))))
    finally:
        sys.setswitchinterval(before_s)
    said = [
        f"{statistics.median(p50 for p50, _ in rounds) / 1000:.2f} and "
        f"{statistics.median(p99 for _, p99 in rounds) / 1000:.2f} ms ({1000 * interval_s:g} ms)"
        for interval_s, rounds in found.items()
    ]
    what = "end of a wait in a thread until a busy event loop has it, by the interpreter's switch interval: p50 and p99"
    row = {"what": what, "measured": ", ".join(said), "goal": "-", "command": COMMAND}
    return {"rows": [row], "command": COMMAND}
