"""Runs of kernels that are looked at for faults: on a GPU by compute-sanitizer, on the host by the shim.

`python -m tests.gpu.sanitized` runs right kernels on the GPU, and with the name of one of compute-sanitizer's tools
those in which something is wrong that the tool is there to find. No GPU has run it yet.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from engines.errors import EngineError
from tests.gpu.device import Gpu
from tests.gpu.layers import PluginLayers
from tests.gpu.plugins import Plugins
from tests.plugins.cuda.on_host import CUDA
from tests.plugins.cuda.test_on_host_mutations import Mutation, mutated, run_convolutions, run_packs, run_pools

__all__ = ["FAULTS", "run_layers"]

_LOOP = "ptx::barrier();                        // and all"


FAULTS = {
    "memcheck": Mutation(
        "bits of pixels behind the last", "epilogue.cuh", "&& pixel < own.pixels && left > 0)", "&& left > 0)",
        "out of bounds",
    ),
    "racecheck": Mutation(
        "no barrier behind the table of windows", "convolve.cu", "block.rectangles);\n    ptx::barrier();",
        "block.rectangles);", "race at byte|shared memory: uninitialized",
    ),
    "initcheck": Mutation(
        "stages that are not loaded", "convolve.cu", "if (number < count) load(number, number);", "",
        "shared memory: uninitialized",
    ),
    "synccheck": Mutation(
        "a barrier for half of a warp", "convolve.cu", _LOOP, f"if (ptx::thread() % 2 == 0) {_LOOP}", "diverges",
    ),
}  # fmt: skip
"""What each tool is there to find, and the shim's words for it. Of memory that nothing has written, initcheck knows
that of the device alone, and the shim that which blocks share: so on a GPU inputs are not copied, either.
"""


def run_layers(layers: PluginLayers) -> None:
    """Several stages, every border, groups, each width of loads; all operators."""
    for run in (run_convolutions, run_packs, run_pools):
        run(layers)  # type: ignore[arg-type]


class _Forgetful(Gpu):
    """It copies no inputs."""

    def write(self, address: int, array: np.ndarray) -> None:
        pass


def main(tool: str) -> None:
    """Run on the GPU; what is right is held to the reference, and of what is wrong only a tool's report counts."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as around:
        kept, changed = Path(name, "kept"), Path(name, "changed")
        changed.mkdir()
        kind = _Forgetful if tool == "initcheck" else Gpu
        gpu = kind(kept, mutated(FAULTS[tool], changed) if tool else CUDA)
        if tool:
            around.enter_context(contextlib.suppress(AssertionError, EngineError))
        around.enter_context(contextlib.closing(gpu))
        run_layers(PluginLayers(around.enter_context(Plugins(gpu))))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
