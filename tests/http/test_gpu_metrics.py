"""Metrics of GPUs, by a stand-in for NVML: what perf_analyzer's own expressions find in them."""

from __future__ import annotations

import re
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.gpu_metrics import GpuMetrics

_READ = {
    name: re.compile(rf'\n{name}\{{gpu_uuid="([^"]+)"\}} (\d+\.?\d*)')
    for name in ("nv_gpu_utilization", "nv_gpu_power_usage", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")
}
"""Those of perf_analyzer's metrics manager."""


class Unsupported(Exception):
    """NVMLError_NotSupported."""


def nvml_with(gpus: int, *, mute: str = "") -> types.ModuleType:
    """`mute`: a function that device 0 does not have."""
    made = types.ModuleType("pynvml")
    memory = types.SimpleNamespace(total=85520809984, used=1234567890123)
    told: dict[str, Any] = {
        "UtilizationRates": types.SimpleNamespace(gpu=37), "MemoryInfo": memory, "PowerUsage": 61234,
        "EnforcedPowerLimit": 400000, "TotalEnergyConsumption": 987654321012,
    }  # fmt: skip
    made.begun = 0  # type: ignore[attr-defined]

    def begin() -> None:
        made.begun += 1  # type: ignore[attr-defined]

    def asked(name: str) -> Any:
        def get(gpu: int) -> Any:
            if gpu == 0 and name == mute:
                raise Unsupported
            return told[name]

        return get

    made.nvmlInit = begin  # type: ignore[attr-defined]
    made.nvmlDeviceGetCount = lambda: gpus  # type: ignore[attr-defined]
    made.nvmlDeviceGetHandleByIndex = lambda at: at  # type: ignore[attr-defined]
    made.nvmlDeviceGetUUID = lambda gpu: f"GPU-{gpu}"  # type: ignore[attr-defined]
    for name in told:
        setattr(made, f"nvmlDeviceGet{name}", asked(name))
    return made


def test_perf_analyzer_reads_the_numbers_that_nvml_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(2))
    page = GpuMetrics().page().decode()
    found = {name: dict(read.findall(page)) for name, read in _READ.items()}
    assert found == {
        "nv_gpu_utilization": {"GPU-0": "0.370", "GPU-1": "0.370"},
        "nv_gpu_power_usage": {"GPU-0": "61.234", "GPU-1": "61.234"},
        "nv_gpu_memory_used_bytes": {"GPU-0": "1234567890123", "GPU-1": "1234567890123"},
        "nv_gpu_memory_total_bytes": {"GPU-0": "85520809984", "GPU-1": "85520809984"},
    }
    assert '\nnv_energy_consumption{gpu_uuid="GPU-0"} 987654321.012\n' in page


def test_what_a_gpu_does_not_tell_is_left_out_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(2, mute="PowerUsage"))
    page = GpuMetrics().page().decode()
    assert _READ["nv_gpu_power_usage"].findall(page) == [("GPU-1", "61.234")]
    assert len(_READ["nv_gpu_utilization"].findall(page)) == 2


@pytest.mark.parametrize("what", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"])
def test_a_gpu_that_is_lost_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    nvml = nvml_with(2)
    asked = getattr(nvml, what)

    def lost(gpu: int) -> Any:
        if gpu == 0:
            raise Unsupported
        return asked(gpu)

    setattr(nvml, what, lost)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    page = GpuMetrics().page().decode()
    assert [read.findall(page) for read in _READ.values()] == [
        [("GPU-1", value)] for value in ("0.370", "61.234", "1234567890123", "85520809984")
    ]


def test_nvml_is_begun_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, metrics = nvml_with(1), GpuMetrics()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert metrics.page() == metrics.page() != b""
    assert nvml.begun == 1


def test_without_nvml_or_gpus_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    metrics = GpuMetrics()
    assert metrics.page() == b""
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(0))
    assert metrics.page() == b""
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(1))
    assert GpuMetrics().page() != b""


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        (None, ["GPU-0", "GPU-1", "GPU-2"]), ("", []), ("1", ["GPU-1"]), ("2, 0", ["GPU-2", "GPU-0"]),
        ("1,7,0", ["GPU-1"]),
        ("-1", []), ("GPU-2,0", ["GPU-2", "GPU-0"]), ("GPU-", []), ("1,1", ["GPU-1"]), ("GPU-9,0", []),
    ],
)  # fmt: skip
def test_only_gpus_that_cuda_shows_are_seen_and_in_its_order(
    monkeypatch: pytest.MonkeyPatch, told: str | None, seen: list[str]
) -> None:
    """Of "GPU-" three begin so, and it names none."""
    if told is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    monkeypatch.setitem(sys.modules, "pynvml", nvml_with(3))
    assert [uuid for uuid, _ in _READ["nv_gpu_utilization"].findall(GpuMetrics().page().decode())] == seen


def test_an_nvml_that_hangs_holds_up_no_other_page(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, asked, goes_on = nvml_with(1), threading.Event(), threading.Event()

    def hangs(at: int) -> int:
        asked.set()
        goes_on.wait(60)
        return at

    nvml.nvmlDeviceGetHandleByIndex = hangs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    metrics = GpuMetrics()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(metrics.page)
        assert asked.wait(10)
        assert metrics.page() == b""
        goes_on.set()
        assert b"nv_gpu_utilization" in first.result(10)
    assert b"nv_gpu_utilization" in metrics.page()
