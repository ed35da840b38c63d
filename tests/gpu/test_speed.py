"""Times of binary convolutions beside FP16 and INT8, on a GPU; on the host it is run at small sizes, and its times say
nothing. A GPU has not run this yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx
import pytest

from benchmarks.report import write_result
from engines.hardware import gpus
from engines.plugins.cuda.launches import TACTICS
from engines.targets.tensorrt_process import build_apart
from tests.gpu.conftest import XOR
from tests.gpu.device import Gpu
from tests.gpu.executors import Graph, options_for
from tests.gpu.machines import NoMachine, skip_or_fail
from tests.gpu.speed import BATCHES, SHAPES, Convolution, Turns, half_network, int8_network, measured, rows_of
from tests.targets.gpu.on_host import Host

KINDS = 2 * len(TACTICS) + 2
"""Every tactic of each output, and two engines."""
SMALLER = 8
"""Times, on the host."""


def require_times(times: dict[str, float]) -> None:
    assert len(times) == KINDS
    assert all(math.isfinite(us) and us > 0 for us in times.values()), times


@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("rows", BATCHES)
def test_each_is_timed_on_the_host(host: Callable[[int], Host], size: int, channels: int, rows: int) -> None:
    convolution = Convolution(max(2, size // SMALLER), channels // SMALLER, max(1, rows // SMALLER))
    times = measured(host(XOR), convolution, Turns(rounds=1, runs=1))
    require_times(times)
    for row in rows_of({convolution: times}):
        assert "x FP16 engine, not captured, " in row["measured"]
        assert row["measured"].endswith("x INT8 engine, not captured")


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[Convolution, dict[str, float]]]:
    """What was measured of a GPU; written where all of it was, and NVML knows the GPU and says what it is."""
    found: dict[Convolution, dict[str, float]] = {}
    yield found
    known = gpus()
    if known and len(found) == len(SHAPES) * len(BATCHES):
        details = {str(convolution): times for convolution, times in found.items()}
        write_result("gpu_binary", {"gpu": known[0]._asdict(), "rows": rows_of(found), "median_us": details})


@pytest.mark.timeout(900)  # two engines are built, kernel by kernel
@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("rows", BATCHES)
def test_each_is_timed_on_a_gpu(
    gpu: Gpu, kept: dict[Convolution, dict[str, float]], size: int, channels: int, rows: int
) -> None:
    convolution = Convolution(size, channels, rows)
    try:
        times = measured(gpu, convolution, Turns(rounds=15, runs=50))
    except NoMachine as none:
        skip_or_fail(none)
    require_times(times)
    kept[convolution] = times


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (half_network, {"CONVOLUTION FP16": 1}),
        (int8_network, {"CONVOLUTION FP32": 1, "DEQUANTIZE FP32": 2, "QUANTIZE INT8": 1}),
    ],
)
def test_engines_that_are_timed_can_be_built(
    network: Callable[[Convolution], onnx.ModelProto], layers: dict[str, int]
) -> None:
    """By TensorRT-RTX, without a GPU. INT8 is a convolution of what was quantized, for the builder to fuse."""
    graph = Graph(network(Convolution(14, 256, 8)))
    data, plan = build_apart("tensorrt-rtx", graph.model, options_for(graph, 86, has_plugins=False))
    assert data[:4] == b"vtrt"
    assert {key: count for key, count in plan.network.items() if not key.startswith("CONSTANT")} == layers
