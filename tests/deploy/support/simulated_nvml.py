"""NVML of the simulated GPU, for a server that is started by `tests.simulated.serve`: the module `pynvml` there.

It tells what the simulated device holds and whether it is lost. Power follows the runs between two calls, energy the
power; a device that is lost has no handle, as one that has fallen off the bus. Nothing here is told to builds, which
ask for more than this (`engines.hardware.gpus`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_IDLE_W, _BUSY_W, _LIMIT_W = 30.0, 170.0, 200.0
_JOULES = {"total": 0.0, "at_s": time.monotonic(), "runs": 0.0, "share": 0.0}


class NVMLError(Exception):
    """GPU_IS_LOST, or no device of that number."""


def _gpus() -> list[Any]:
    found: list[Any] = getattr(sys.modules["__main__"], "_gpus", [])
    return found


def nvmlInit() -> None:
    """Nothing has to be loaded."""


def nvmlDeviceGetCount() -> int:
    """Lost ones are counted."""
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    """The simulated device."""
    gpu = _gpus()[index]
    lost_file = gpu.faults.lost_file
    if gpu.is_lost or (lost_file and Path(lost_file).exists()):
        raise NVMLError("GPU is lost")
    return gpu


def nvmlDeviceGetUUID(gpu: Any) -> str:
    """Of the form that NVML's have."""
    return f"GPU-00000000-0000-0000-0000-{_gpus().index(gpu):012d}"


def nvmlDeviceGetMemoryInfo(gpu: Any) -> SimpleNamespace:
    """What the simulated device has given out."""
    return SimpleNamespace(total=gpu.faults.most_bytes, used=gpu.used_bytes())


def nvmlDeviceGetUtilizationRates(gpu: Any) -> SimpleNamespace:
    """Busy where it ran something since it was last asked."""
    now_s, runs = time.monotonic(), float(gpu.runs)
    _JOULES["share"] = min(1.0, runs - _JOULES["runs"])
    _JOULES["total"] += (now_s - _JOULES["at_s"]) * _watts()
    _JOULES.update(at_s=now_s, runs=runs)
    return SimpleNamespace(gpu=round(100 * _JOULES["share"]))


def _watts() -> float:
    return _IDLE_W + (_BUSY_W - _IDLE_W) * _JOULES["share"]


def nvmlDeviceGetPowerUsage(gpu: Any) -> int:
    """Milliwatts."""
    return round(1000 * _watts())


def nvmlDeviceGetEnforcedPowerLimit(gpu: Any) -> int:
    """Milliwatts."""
    return round(1000 * _LIMIT_W)


def nvmlDeviceGetTotalEnergyConsumption(gpu: Any) -> int:
    """Millijoules."""
    return round(1000 * _JOULES["total"])
