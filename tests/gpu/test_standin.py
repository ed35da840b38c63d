"""What the driver of a GPU is told, over a stand-in for its library: whole tests, and nothing is left. It is no GPU."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

MISUSES = """
import ctypes
import numpy as np
from pathlib import Path
from engines.errors import EngineError
from engines.plugins.cuda.launches import pool_launch
from engines.plugins.ops import PoolAttributes
from tests.gpu.device import Gpu
ctypes.CDLL("libcuda.so.1").standin_set_argument(0, b"pool", ctypes.c_size_t(80))
gpu = Gpu(Path("kept"))
print(gpu.driver.sm())
array = np.zeros(64, np.uint8)
module = gpu.driver.load_module(b"\\x7fELF")
entry = gpu.driver.function(module, "pool_4")
argument = pool_launch((1, 1, 1, 1), PoolAttributes(kernel_shape=(1, 1))).arguments([0, 0])
def captured(run):
    with gpu.captured(run):
        pass
def lent_and_given_back():
    with gpu.lend([array], []) as (address,):
        gpu.write(address, np.zeros(65, np.uint8))
for misuse in (
    lent_and_given_back,
    lambda: gpu.read(0x1234, array),
    lambda: gpu.driver.load_module(b"text"),
    lambda: gpu.driver.function(module, "missing"),
    lambda: gpu.driver.launch(entry, (1, 0, 1), 32, 0, gpu.stream, argument),
    lambda: gpu.driver.launch(entry, (1, 1, 1), 32, 0, 0x55, argument),
    lambda: captured(lambda: gpu.driver.load_module(b"\\x7fELF")),
    lambda: captured(lambda: gpu.write(0, array)),
    lambda: gpu.driver.unload_module(module + 1),
    lambda: gpu.close() or gpu.driver.unload_module(module),
):
    try:
        misuse()
        print("done")
    except EngineError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the stand-in where the library of a driver would be."""
    folder = tmp_path_factory.mktemp("standin")
    words = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = Path(__file__).with_name("standin.c")
    subprocess.run([*words, str(source), "-o", str(folder / "libcuda.so.1")], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "CI": "true"}


def test_what_needs_a_gpu_runs_over_the_stand_in(environment: dict[str, str]) -> None:
    """Nothing of it is skipped: with CI=true, that would be a failure."""
    library = Path(environment["LD_LIBRARY_PATH"]) / "libcuda.so.1"
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.gpu.standin", str(library), "-rs", "-k", "[gpu",
            "tests/gpu/test_machines.py", "tests/gpu/test_numerics.py",
        ],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=170, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    assert done.stdout.endswith("0 things are left on the device, 0 launches went wrong\n")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels that were compiled."""
    return tmp_path_factory.mktemp("cubins")


@pytest.mark.parametrize(("kernels", "grown"), [("Kernels", ""), ("MemoryOfTheDevice", "device_bytes")])
def test_shapes_change_and_nothing_is_left_of_launches(
    environment: dict[str, str], kept: Path, kernels: str, grown: str
) -> None:
    """The driver is told of each launch, and runs none. Memory of the device that is not freed is planted."""
    library = Path(environment["LD_LIBRARY_PATH"]) / "libcuda.so.1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.standin", str(library), "changes", kernels, str(kept)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=170, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, left = done.stdout.splitlines()
    problems = [problem.partition(":")[0] for problem in ast.literal_eval(found)]
    assert grown in problems if grown else not problems, problems  # a device's memory is that of the process here
    assert (left == "0 things are left on the device") == (not grown)


def test_the_stand_in_refuses_what_a_driver_does(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISUSES], capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "86",
        "CUDA: CUDA_ERROR_INVALID_VALUE",
        "CUDA: CUDA_ERROR_INVALID_VALUE",
        "CUDA: CUDA_ERROR_INVALID_IMAGE",
        "CUDA: CUDA_ERROR_NOT_FOUND",
        "CUDA: CUDA_ERROR_INVALID_VALUE",
        "CUDA: CUDA_ERROR_INVALID_HANDLE",
        "CUDA: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "CUDA: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "CUDA: CUDA_ERROR_INVALID_HANDLE",
        "CUDA: CUDA_ERROR_INVALID_CONTEXT",
    ], done.stderr
