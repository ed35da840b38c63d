"""The CUDA driver through NVIDIA's bindings, over a stand-in for its library: what reaches it is what was meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import EngineError
from engines.hardware import gpus
from engines.runtime.cuda import CudaDriver
from tests.support.servers import ROOT

CALLS = """
from engines.errors import EngineError
from engines.runtime.cuda import CudaDriver
driver = CudaDriver()
print(driver.sm())
module = driver.load_module(b"\\x7fELF and more")
function = driver.function(module, "convolve_64x64_4")
driver.launch(function, (3, 2, 1), 128, 4096, 0x55, bytes(range(16)))
driver.unload_module(module)
for call in (lambda: driver.function(module, "missing"), lambda: CudaDriver(1),
             lambda: driver.launch(function, (1, 1, 1), 1, 0, 0, bytes(5000)),
             lambda: driver.launch(function, (0, 1, 1), 1, 0, 0, bytes(16))):
    try:
        call()
    except EngineError as error:
        print(error)
"""


def test_what_is_launched_reaches_the_driver(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(source), "-o", str(library)], check=True
    )
    ran = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        "86", "CUDA: CUDA_ERROR_NOT_FOUND", "CUDA: CUDA_ERROR_INVALID_DEVICE",
        "an argument of 5000 bytes; a kernel takes 4096 at most",
    ], ran.stderr  # fmt: skip
    assert ran.stderr.splitlines() == [
        "load \x7fELF",
        "function 0x1234 convolve_64x64_4",
        "launch 0x77 3 2 1 128 1 1 4096 0x55 1 000102030405060708090a0b0c0d0e0f",
        "unload 0x1234",
        "function 0x1234 missing",
        "launch 0x77 0 1 1 1 1 1 0 (nil) 1 " + "00" * 16,
    ]


@pytest.mark.skipif(bool(gpus()), reason="there is a driver")
def test_without_a_driver_it_is_said() -> None:
    with pytest.raises(EngineError, match="no CUDA driver on this machine"):
        CudaDriver()
