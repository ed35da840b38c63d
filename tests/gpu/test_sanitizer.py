"""compute-sanitizer finds nothing in the kernels, and each planted fault; on the host the shim does the same. A GPU has
not run this yet.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from engines.hardware import gpus
from tests.gpu.conftest import XOR
from tests.gpu.layers import PluginLayers
from tests.gpu.plugins import Plugins
from tests.gpu.sanitized import FAULTS, run_layers
from tests.plugins.cuda.on_host import HostBuild, HostFault
from tests.plugins.cuda.test_on_host_mutations import mutated
from tests.support.servers import ROOT
from tests.targets.gpu.on_host import Host

SANITIZER = "compute-sanitizer"
REPORTED = 86
"""What the process is to end with where something was reported: nothing else ends it so."""


def sanitizer() -> str:
    """The CUDA toolkit's, or the one that is installed with the tests."""
    files = metadata.files("nvidia-cuda-sanitizer-api") or []
    installed = [str(file.locate()) for file in files if file.match(f"bin/{SANITIZER}")]
    return shutil.which(SANITIZER) or installed[0]


def sanitized(tool: str, *planted: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sanitizer(), "--tool", tool, "--error-exitcode", str(REPORTED), "--target-processes", "all", *options]
    own = [sys.executable, "-m", "tests.gpu.sanitized", *planted]
    return subprocess.run([*command, *own], capture_output=True, text=True, check=False, cwd=ROOT, timeout=900)


@pytest.mark.timeout(1000)
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("tool", FAULTS)
def test_nothing_is_reported_of_a_gpu(tool: str) -> None:
    done = sanitized(tool)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(1000)
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("tool", FAULTS)
def test_a_planted_fault_of_a_gpu_is_reported(tool: str) -> None:
    done = sanitized(tool, tool)
    assert done.returncode == REPORTED, done.stdout + done.stderr


@pytest.mark.parametrize("tool", FAULTS)
def test_a_planted_fault_is_reported_by_the_shim(build: HostBuild, tmp_path: Path, tool: str) -> None:
    """By plugins, as all that runs here on the host."""
    changed = Host(build, XOR, mutated(FAULTS[tool], tmp_path))
    with Plugins(changed) as plugins, pytest.raises(HostFault, match=FAULTS[tool].said):
        run_layers(PluginLayers(plugins))


def test_the_shim_reports_nothing_else(build: HostBuild) -> None:
    with Plugins(Host(build, XOR)) as plugins:
        run_layers(PluginLayers(plugins))


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_gpu_what_the_sanitizer_runs_says_so() -> None:
    """And nothing else goes wrong before."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.sanitized", "memcheck"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=100,
    )  # fmt: skip
    assert done.stderr.rstrip().splitlines()[-1].startswith("tests.gpu.machines.NoMachine: no CUDA driver")


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
@pytest.mark.parametrize("tool", FAULTS)
def test_without_a_gpu_the_sanitizer_knows_its_options(tool: str) -> None:
    """It runs nothing: without a CUDA driver, what it puts into a process ends that."""
    done = sanitized(tool, options=["--require-cuda-init", "no"])
    assert "Target application terminated before first instrumented API call" in done.stdout, done.stdout + done.stderr
    assert sanitized(tool, options=["--no-such-option"]).returncode != done.returncode == 0
