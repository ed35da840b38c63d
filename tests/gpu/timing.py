"""How fast a session runs, and what NVIDIA's own program says of the same plan."""

from __future__ import annotations

import math
import queue
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.reference import Arrays
from engines.runtime.session import Session, Slot

__all__ = ["PROGRAMS", "Times", "rows_of", "session_times", "told_times"]

PROGRAMS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""What comes with each library to time a plan (TensorRT, Command-Line Programs)."""
_WARM_UP_S = 0.2


class Times(NamedTuple):
    """Of batches: how many a second with two under way, and milliseconds of one that is alone, from pinned memory to
    pinned memory.
    """

    batches_per_s: float
    p50_ms: float
    p99_ms: float


def session_times(session: Session, rows: Arrays, seconds: float) -> Times:
    """Of the first instance."""
    first, *_ = slots = session.slots[:2]
    for slot in slots:
        views = slot.bind({name: array.shape for name, array in rows.items()})
        for name, array in rows.items():
            np.copyto(views[name], array)
    _latencies_ms(first, _WARM_UP_S)
    alone = _latencies_ms(first, seconds)
    return Times(_throughput(slots, seconds), statistics.median(alone), float(np.percentile(alone, 99)))


def _latencies_ms(slot: Slot, seconds: float) -> list[float]:
    end, found = time.perf_counter() + seconds, []
    while (begun := time.perf_counter()) < end:
        _require(slot.run())
        found.append((time.perf_counter() - begun) * 1e3)
    return found


def _throughput(slots: Sequence[Slot], seconds: float) -> float:
    ended: queue.SimpleQueue[tuple[Slot, BaseException | None]] = queue.SimpleQueue()

    def start(slot: Slot) -> None:
        slot.launch(lambda error: ended.put((slot, error)))

    count, begun = 0, time.perf_counter()
    for slot in slots:
        start(slot)
    while time.perf_counter() - begun < seconds:
        slot, error = ended.get(timeout=60)
        _require(error)
        count += 1
        start(slot)
    took_s = time.perf_counter() - begun
    for _ in slots:
        _require(ended.get(timeout=60)[1])
    return count / took_s


def _require(error: BaseException | None) -> None:
    if error is not None:
        raise error


def told_times(command: Sequence[str], plan: Path, shapes: Mapping[str, Sequence[int]], seconds: float) -> Times:
    """What `trtexec` says, by CUDA graphs, as a session runs them: how many a second with the next batch under way, and
    times of batches that are each alone. Those are sums of what the GPU took for copies and kernels (TensorRT,
    Command-Line Programs: Host Latency); what it takes to launch one and to be told is in a session's times only.

    Raises CalledProcessError where it fails, ValueError where it says something else than it is known to.
    """
    sizes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    flags = [f"--loadEngine={plan}", f"--shapes={sizes}", f"--duration={math.ceil(seconds)}", "--useCudaGraph"]

    def run(*more: str) -> Times:
        whole = [*command, *flags, *more]
        return _read(subprocess.run(whole, capture_output=True, text=True, check=True, timeout=seconds + 120).stdout)

    overlapped, alone = run(), run("--exposeDMA")
    return alone._replace(batches_per_s=overlapped.batches_per_s)


def _read(output: str) -> Times:
    throughput = re.search(r"Throughput: ([\d.e+]+) qps", output)
    latency = re.search(r"\] Latency: .*?median = ([\d.e-]+) ms.*?percentile\(99%\) = ([\d.e-]+) ms", output)
    if throughput is None or latency is None:
        raise ValueError(f"it tells no throughput and latency: {output[-500:]}")
    return Times(float(throughput[1]), float(latency[1]), float(latency[2]))


def rows_of(name: str, ours: Times, theirs: Times | None, program: str) -> list[dict[str, str]]:
    """For the table of what was measured."""
    told = (
        f"{ours.batches_per_s / theirs.batches_per_s:.2f}x of {program}, p50 {ours.p50_ms / theirs.p50_ms:.2f}x"
        if theirs
        else f"beside {program}: not installed"
    )
    measured = f"{ours.batches_per_s:,.0f} batches/s, p50 {ours.p50_ms:.3f} ms, p99 {ours.p99_ms:.3f} ms; {told}"
    return [{"what": f"{name}: engine on a GPU", "measured": measured, "goal": "", "command": "make gpu-test"}]
