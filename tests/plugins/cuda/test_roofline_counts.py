"""What the bounds count is what kernels do: the very sources run on this processor, with counters around operations."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.roofline import Layer, counts_of
from engines.plugins.cuda.launches import OutType, convolve_launch
from engines.plugins.cuda.layout import row_words_of
from engines.plugins.cuda.tactics import TACTICS, WARP, Tactic
from engines.plugins.ops import ConvAttributes, words_of
from tests.plugins.cuda.on_host import CUDA, HostBuild, HostKernels, missing

COUNTED = """
#include <atomic>
namespace counted {
inline std::atomic<long long> products, bytes;
inline void mma(int (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ++products; ptx::mma(sums, a, b); }
inline void load_matrices(uint32_t (&r)[4], uint32_t at) { bytes += 16; ptx::load_matrices(r, at); }
template <int size> inline void copy_async(uint32_t at, const void* from, bool is_there) {
    bytes += size;
    ptx::copy_async<size>(at, from, is_there);
}
inline uint32_t load_shared(uint32_t at) { bytes += 4; return ptx::load_shared(at); }
inline void store_shared(uint32_t at, uint32_t value) { bytes += 4; ptx::store_shared(at, value); }
inline ptx::Words load_shared4(uint32_t at) { bytes += 16; return ptx::load_shared4(at); }
inline void store_shared4(uint32_t at, ptx::Words words) { bytes += 16; ptx::store_shared4(at, words); }
}  // namespace counted
"""
TAKEN = """
extern "C" void counted_take(long long* found) {
    found[0] = counted::products.exchange(0);
    found[1] = counted::bytes.exchange(0);
}
"""
OPERATIONS = r"ptx::(mma|load_matrices|copy_async|load_shared4?|store_shared4?)\b"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kernels in which each operation that is counted is called by way of a counter."""
    folder = tmp_path_factory.mktemp("counted")
    for name in ("tile.cuh", "epilogue.cuh", "convolve.cu"):
        text, count = re.subn(OPERATIONS, r"counted::\1", (CUDA / name).read_text())
        assert count
        (folder / name).write_text(text.replace('#include "ptx.cuh"\n', '#include "ptx.cuh"\n#include "counted.cuh"\n'))
    (folder / "counted.cuh").write_text(f"#pragma once\n{COUNTED}")
    with (folder / "convolve.cu").open("a") as file:
        file.write(TAKEN)
    return folder / "convolve.cu"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    absent = missing()
    if absent and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(absent)}; see .ci/debian-packages.txt")
    return HostBuild(tmp_path_factory.mktemp("shim"))


def done(kernels: HostKernels, layer: Layer, rows: int, out: OutType, tactic: Tactic) -> tuple[int, int, int]:
    """Blocks, products of a warp and bytes of shared memory, of a whole launch."""
    words, filters = words_of(layer.channels), layer.channels
    own = ConvAttributes(channels=layer.channels, pads=(1, 1, 1, 1))
    launch = convolve_launch((rows, layer.size, layer.size, words), filters, (3, 3), own, out, 1, tactic)
    floats = [np.ones(filters, np.float32), np.zeros(filters, np.float32), np.array([0, 1, 0], np.float32)]
    bits = [np.zeros(filters, np.int32), np.zeros(words_of(filters), np.int32)]
    given = [
        np.zeros((rows, layer.size, layer.size, words), np.int32),
        np.zeros((filters, row_words_of((3, 3), words)), np.int32), np.zeros((filters, 4, 4), np.int32),
        *([None, None, None, *bits] if out == "BITS" else [*floats, None, None]),
    ]  # fmt: skip
    size = rows * layer.size**2
    shape = (size, words) if out == "BITS" else (size, filters)
    kernels.run(launch, given, (shape, {"FP32": np.float32, "FP16": np.float16, "BITS": np.int32}[out]))
    found = (ctypes.c_longlong * 2)()
    kernels._library.counted_take(found)  # the library of this very run
    return launch.grid[0] * launch.grid[1] * launch.grid[2], found[0] // WARP, found[1]


CASES: tuple[tuple[Layer, OutType], ...] = (
    (Layer(8, 128), "FP32"), (Layer(8, 128), "FP16"), (Layer(8, 192), "BITS"), (Layer(7, 160), "BITS"),
)  # fmt: skip
"""Words of a window are loaded 16, 8 and 4 bytes at a time; floats are of whole tiles, which are what is counted."""


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda one: one.name)
@pytest.mark.parametrize("sm", [80, 90])
def test_a_launch_does_what_was_counted(build: HostBuild, source: Path, sm: int, tactic: Tactic) -> None:
    kernels = build.kernels(source, sm)
    for layer, out in CASES:
        expected = counts_of(layer, 2, out, tactic, is_and=sm >= 90)
        blocks, products, shared = done(kernels, layer, 2, out, tactic)
        assert blocks == expected.blocks
        assert products == blocks * expected.products
        assert shared == blocks * expected.shared_bytes
