"""The driver by PyCUDA and NVIDIA's bindings, over the simulated GPU: the runtime finds in it all that it asks for."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

from engines.errors import DeviceLost, EngineError, OutOfMemory
from engines.runtime.pycuda_driver import PyCudaDriver
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.bindings import bindings_over, pycuda_over
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums

MODEL = scaled_sums()
Over = Callable[..., PyCudaDriver]


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Over:
    """A driver over these GPUs."""

    def made(*gpus: SimulatedGpu, device: int = 0) -> PyCudaDriver:
        for package, driver in (("pycuda", pycuda_over(gpus)), ("cuda.bindings", bindings_over(gpus))):
            module = types.ModuleType(package)
            module.driver = driver  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, package, module)
            monkeypatch.setitem(sys.modules, f"{package}.driver", driver)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        return PyCudaDriver(device)

    return made


def test_a_session_runs_on_it_and_leaves_nothing(over: Over) -> None:
    gpu = SimulatedGpu()
    session = TensorRtSession(trt, {0: over(gpu)}, MODEL.data, MODEL.plan, MODEL.manifest, most_rows=8)
    for count in (1, 3, 8):
        x = np.random.default_rng(count).standard_normal((count, 4), dtype=np.float32)
        for slot in session.slots:
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            np.testing.assert_allclose(slot.outputs()["y"], planned(MODEL, x), rtol=0, atol=1e-5)
    assert gpu.replays == 6
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})


def test_the_second_gpu_is_the_one_that_is_used(over: Over) -> None:
    gpus = SimulatedGpu(), SimulatedGpu()
    session = TensorRtSession(trt, {1: over(*gpus, device=1)}, MODEL.data, MODEL.plan, MODEL.manifest)
    slot = session.slots[0]
    slot.bind({"x": (1, 4)})["x"][:] = 1
    assert slot.run() is None
    session.close()
    assert not gpus[0].calls
    assert "copy_in" in gpus[1].calls


@pytest.mark.parametrize("faults", [Faults(refuse_captures=True), Faults(refuse_graphs=True)])
def test_where_there_can_be_no_graphs_it_runs_without(over: Over, faults: Faults) -> None:
    gpu = SimulatedGpu(faults)
    session = TensorRtSession(trt, {0: over(gpu)}, MODEL.data, MODEL.plan, MODEL.manifest)
    assert gpu.replays == 0
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})


def test_memory_that_is_not_there_is_named_with_the_sizes(over: Over) -> None:
    gpu = SimulatedGpu()
    driver = over(gpu)
    driver.attach()
    gpu.faults.most_bytes = 1000
    with pytest.raises(OutOfMemory, match="2000 bytes of the GPU, 1000 of 1000 are free"):
        driver.allocate(2000)
    driver.detach()


def test_a_lost_device_is_known_by_either_library(over: Over) -> None:
    gpu = SimulatedGpu()
    driver = over(gpu)
    driver.attach()
    event, stream = driver.event(), driver.stream()
    gpu.is_lost = True
    for call in (driver.memory, lambda: driver.record(event, stream), lambda: driver.allocate(1)):
        with pytest.raises(DeviceLost):
            call()
    driver.detach()


def test_a_gpu_that_is_not_there_is_refused(over: Over) -> None:
    with pytest.raises(EngineError, match="CUDA_ERROR_INVALID_DEVICE"):
        over(SimulatedGpu(), device=1)
    with pytest.raises(EngineError, match="CUDA_ERROR_NO_DEVICE"):
        over()
