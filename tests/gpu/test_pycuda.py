"""The driver by the real PyCUDA, over a stand-in for the driver's library; PyCUDA must have been compiled here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

SOURCE = Path(__file__).with_name("pycuda_standin.c")


@pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None, reason="needs PyCUDA, which a CUDA toolkit with cuRAND compiles"
)
def test_pycuda_is_asked_what_it_knows(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    compiler = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*compiler, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.gpu.over_pycuda", str(library)], cwd=ROOT, check=False, capture_output=True,
        text=True, timeout=120, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() == "all asked"
