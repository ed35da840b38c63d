"""Triton's metrics of GPUs, from NVML, in the very form that perf_analyzer reads: one label, no exponents.

prometheus_client writes large numbers with an exponent, of which perf_analyzer takes the digits before it for bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from engines.runtime import visible_gpus

__all__ = ["GpuMetrics"]

_PATIENCE_S = 0.2
"""Two scrapes at once wait for each other; a call that does not come back must not take up all threads."""


class _Family(NamedTuple):
    """`value` of NVML and a device's handle; raises where the device does not tell."""

    name: str
    kind: str
    help: str
    value: Callable[[Any, Any], float]


_FAMILIES = (
    _Family("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)",
            lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
    _Family("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes",
            lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    _Family("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes",
            lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    _Family("nv_gpu_power_usage", "gauge", "GPU power usage in watts",
            lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    _Family("nv_gpu_power_limit", "gauge", "GPU power management limit in watts",
            lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000),
    _Family("nv_energy_consumption", "counter", "GPU energy consumption in joules since the driver was loaded",
            lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000),
)  # fmt: skip


class GpuMetrics:
    """NVML is begun when it is first asked for, and asked again later where that failed. Thread-safe."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._lock = threading.Lock()

    def page(self) -> bytes:
        """Text exposition; empty where no GPU is to be seen, or an earlier call does not come back from NVML. Blocks
        for some milliseconds.
        """
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return b""
        try:
            return "".join(self._lines()).encode()
        except Exception:  # of NVML's own, or of its import
            return b""
        finally:
            self._lock.release()

    def _lines(self) -> Iterator[str]:
        if self._nvml is None:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._nvml = nvml
        nvml = self._nvml
        gpus: dict[str, Any] = {}
        for at in visible_gpus(nvml):
            with contextlib.suppress(Exception):  # one that is lost has no handle
                gpu = nvml.nvmlDeviceGetHandleByIndex(at)
                gpus[f'gpu_uuid="{nvml.nvmlDeviceGetUUID(gpu)}"'] = gpu
        for family in _FAMILIES:
            found = [(label, _told(family, nvml, gpu)) for label, gpu in gpus.items()]
            samples = [f"{family.name}{{{label}}} {value}\n" for label, value in found if value]
            if samples:
                yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
                yield from samples


def _told(family: _Family, nvml: Any, gpu: Any) -> str:
    """Without an exponent; empty where the device does not tell."""
    try:
        value = family.value(nvml, gpu)
    except Exception:  # NVMLError_NotSupported, or a device that is lost
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
