"""The shim itself: its operations are those of PTX, and it finds each fault that it is there to find."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from tests.plugins.cuda.on_host import SHIM, UNDEFINED, HostBuild, HostFault, HostKernels

SEEDS = range(12)  # orders of warps and lanes


class Launch(NamedTuple):
    entry: str
    block: int
    mode: int = 0
    count: int = 0
    grid: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 768
    source: str = "kernels"

    def arguments(self, pointers: Sequence[int]) -> bytes:
        return struct.pack("<2Q2i", *pointers, self.mode, self.count)


@pytest.fixture(scope="module")
def kernels(build: HostBuild) -> HostKernels:
    return build.kernels(SHIM / "kernels.cu", 80)


@pytest.mark.parametrize("sm", [80, 90])
def test_a_product_of_bits(build: HostBuild, sm: int) -> None:
    """Random fragments, put together by the layout of PTX's tables, are a product in NumPy; sums are added to."""
    rng = np.random.default_rng(sm)
    warps = 6
    a = rng.integers(0, 2**32, (warps, 16, 8), np.uint32)
    b = rng.integers(0, 2**32, (warps, 8, 8), np.uint32)
    sums = rng.integers(-1000, 1000, (warps, 16, 8)).astype(np.int32)
    given = np.empty((warps, 32, 10), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        given[:, lane, :4] = np.stack([a[:, g, t], a[:, g + 8, t], a[:, g, t + 4], a[:, g + 8, t + 4]], 1)
        given[:, lane, 4:6] = np.stack([b[:, g, t], b[:, g, t + 4]], 1)
        given[:, lane, 6:] = _lanes_sums(sums, lane).view(np.uint32)
    launch = Launch("multiply", 64, grid=(warps // 2, 1, 1))
    found = build.kernels(SHIM / "kernels.cu", sm).run(launch, [given], ((warps, 32, 4), np.int32))
    met = a[:, :, None] & b[:, None] if sm >= 90 else a[:, :, None] ^ b[:, None]
    expected = sums + np.bitwise_count(met).sum(-1, dtype=np.int32)
    for lane in range(32):
        np.testing.assert_array_equal(found[:, lane], _lanes_sums(expected, lane))


def _lanes_sums(sums: np.ndarray, lane: int) -> np.ndarray:
    """[warps, 16, 8] -> [warps, 4]."""
    g, t = divmod(lane, 4)
    return np.stack([sums[:, g, 2 * t], sums[:, g, 2 * t + 1], sums[:, g + 8, 2 * t], sums[:, g + 8, 2 * t + 1]], 1)


def test_matrices_are_spread_over_lanes(kernels: HostKernels) -> None:
    """Lane 4 r + j has word j of row r, of each of four matrices of eight rows."""
    given = np.arange(128, dtype=np.uint32).reshape(32, 4)
    found = kernels.run(Launch("matrices", 32), [given], ((32, 4), np.uint32))
    np.testing.assert_array_equal(found, given.reshape(4, 8, 4).transpose(1, 2, 0).reshape(32, 4))


@pytest.mark.parametrize("mask", [0, 1, 2, 7, 16, 31])
def test_lanes_vote_and_exchange(kernels: HostKernels, mask: int) -> None:
    given = np.random.default_rng(mask).integers(0, 2**32, 32, np.uint32)
    found = kernels.run(Launch("exchange", 32, count=mask), [given], ((2, 32), np.uint32), seed=mask)
    votes = sum(int(word % 2) << lane for lane, word in enumerate(given))
    np.testing.assert_array_equal(found[0], np.full(32, votes, np.uint32))
    np.testing.assert_array_equal(found[1], given[np.arange(32) ^ mask])


def test_floats_are_rounded_once(kernels: HostKernels) -> None:
    """Halves of every kind: ties, those beyond the largest, denormals, infinite ones and NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 40000, np.uint32).view(np.float32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    ties = np.sort(finite)[:-1] / 2 + np.sort(finite)[1:] / 2
    first = np.concatenate([bits, halves, ties, np.array([65519.996, 65520, -65520, np.inf], np.float32)])
    given = np.stack([first, rng.permutation(first)], 1).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = [given[:, 0] * given[:, 1], given[:, 0] + given[:, 1], given[:, 0] - given[:, 1]]
        half = given[:, 0].astype(np.float16)
    launch = Launch("floats", 32, count=len(given), grid=(4, 1, 1))
    found = kernels.run(launch, [given], ((len(given), 5), np.float32))
    for column, values in enumerate([*expected]):
        np.testing.assert_array_equal(found[:, column], values)
    np.testing.assert_array_equal(found[:, 3].view(np.uint32).astype(np.uint16).view(np.float16), half)
    np.testing.assert_array_equal(found[:, 4], half.astype(np.float32))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_right_passes_in_every_order(kernels: HostKernels, seed: int) -> None:
    given = np.random.default_rng(seed).integers(0, 2**16, (7, 64), np.uint32)
    out = (64,), np.uint32
    found = kernels.run(Launch("pipeline", 64, count=7), [given], out, seed=seed)
    np.testing.assert_array_equal(found, given.sum(0))
    numbers = np.arange(64, dtype=np.uint32)
    touched = kernels.run(Launch("touch", 64, shared_bytes=256), [given], out, seed=seed)
    np.testing.assert_array_equal(touched, numbers)
    diverged = kernels.run(Launch("diverge", 64), [given], out, seed=seed)
    np.testing.assert_array_equal(diverged, numbers ^ 1)
    wandered = kernels.run(Launch("wander", 32, count=64), [given[0]], out, seed=seed)
    np.testing.assert_array_equal(wandered, given[0])
    shared = kernels.run(Launch("share", 64), [given], ((64,), np.uint16), seed=seed)
    np.testing.assert_array_equal(shared, numbers)
    halves = kernels.run(Launch("uninitialized", 32, shared_bytes=512), [given], ((32,), np.uint32), seed=seed)
    np.testing.assert_array_equal(halves, np.repeat(np.arange(8), 4))


IN_FLIGHT, UNINITIALIZED = "copy of thread .* in flight: no wait covers", "shared memory: uninitialized"
WROTE, WRITES = "wrote and thread .* reads, no barrier between", "read and thread .* writes, no barrier between"
BEHIND = "global memory at byte 256 of buffer {}, which has 256: out of bounds"
FAULTS = [
    ("pipeline", 1, f"{WROTE}|{IN_FLIGHT}|{UNINITIALIZED}"),
    ("pipeline", 2, IN_FLIGHT),
    ("pipeline", 3, IN_FLIGHT),
    ("pipeline", 4, f"{WRITES}|{IN_FLIGHT}"),
    ("touch", 1, "race at byte .*: threads .* and .* write, no barrier between"),
    ("touch", 2, f"{WROTE}|{UNINITIALIZED}"),
    ("touch", 3, f"{WROTE}|{WRITES}|threads .* and .* write"),
    ("touch", 4, "reads 4 bytes at byte .* of shared memory: out of bounds, it has 256 bytes"),
    ("touch", 5, "reads 4 bytes at byte -.* of shared memory: out of bounds"),
    ("touch", 6, "reads 16 bytes of shared memory at address .*: misaligned"),
    ("touch", 7, "copies 8 bytes of shared memory at address .*: misaligned"),
    ("touch", 8, "leaves with copies in flight"),
    ("touch", 9, "leaves with copies in flight"),
    ("touch", 10, "copies 16 bytes of global memory at byte 4 of buffer 0, .*: misaligned"),
    ("touch", 11, f"thread 0 writes byte 0 of shared memory while a {IN_FLIGHT}"),
    ("touch", 12, f"thread 0 reads byte 0 of shared memory while a {IN_FLIGHT}"),
    ("uninitialized", 1, UNINITIALIZED),
    ("uninitialized", 2, UNINITIALIZED),
    ("uninitialized", 3, "names a row of ldmatrix at address .*: misaligned"),
    ("diverge", 1, "warp . diverges: thread .* came to a ballot and thread .* to a shuffle"),
    ("diverge", 2, "warp 0 diverges: thread 0 came to a shuffle and thread 5 to its end"),
    ("diverge", 3, "1 warps of a block wait at a barrier, and 1 have left without it"),
    ("diverge", 4, "warp 1 diverges: thread 32 came to a barrier and thread 40 to a shuffle"),
    ("diverge", 5, "diverges: thread .* came to a shuffle and thread .* to a barrier"),
    ("wander", 1, "reads 4 bytes of global memory at byte .* of buffer 0, which has 256: out of bounds"),
    ("wander", 2, "reads 4 bytes of global memory at byte -.* of buffer 0, which has 256: out of bounds"),
    ("wander", 3, "writes 4 bytes of global memory at byte .* of buffer 1, which has 256: out of bounds"),
    ("wander", 4, "thread 7 writes global memory at byte 28 of buffer 0, .*: an input"),
    ("wander", 5, "reads 16 bytes of global memory at byte 4 of buffer 0, .*: misaligned"),
    ("wander", 6, f"reads 16 bytes of {BEHIND.format(0)}"),
    ("wander", 7, f"writes 16 bytes of {BEHIND.format(1)}"),
    ("wander", 8, f"copies 4 bytes of {BEHIND.format(0)}"),
    ("wander", 9, "global memory at an address of no buffer: out of bounds"),
    ("wander", 10, "reads 8 bytes of global memory at byte 4 of buffer 0, .*: misaligned"),
    ("share", 1, "writes global memory at byte .* of buffer 1, .*: another thread wrote it"),
    ("share", 2, "reads global memory at byte .* of buffer 1, .*: another thread wrote it"),
    ("share", 3, "reads global memory at byte .* of buffer 1, .*: unwritten"),
    ("share", 4, "no thread writes global memory at byte 100 of buffer 1, which has 128"),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("entry", "mode", "said"), FAULTS)
def test_faults_are_found_in_every_order(kernels: HostKernels, entry: str, mode: int, said: str, seed: int) -> None:
    given = np.arange(64 if entry == "wander" else 7 * 64, dtype=np.uint32)
    shared_bytes = {"touch": 256, "uninitialized": 512}.get(entry, 768)
    count = 64 if entry == "wander" else 7
    launch = Launch(entry, 32 if entry in ("wander", "uninitialized") else 64, mode, count, shared_bytes=shared_bytes)
    with pytest.raises(HostFault, match=said):
        kernels.run(launch, [given], ((64,), np.uint16 if entry == "share" else np.uint32), seed=seed)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (1, "an index out of bounds"), (2, "a shift by too much"), (3, "a sum that overflows"),
        (4, "a misaligned or null address"), (5, "a division by zero"),
    ],
)  # fmt: skip
def test_what_is_undefined_is_found(build: HostBuild, mode: int, said: str) -> None:
    kernels = build.kernels(SHIM / "kernels.cu", 80, flags=UNDEFINED)
    given, out = [np.zeros(64, np.uint32)], ((32,), np.uint32)
    with pytest.raises(HostFault, match=rf"thread .*: {said} at kernels.cu:\d+"):
        kernels.run(Launch("undefined", 32, mode, 1), given, out)
    assert (kernels.run(Launch("undefined", 32, 0, 1), given, out) == 1).all()


def test_a_launch_goes_on_after_a_fault(kernels: HostKernels) -> None:
    """In many blocks and by several workers, also after signals."""
    given = np.arange(64, dtype=np.uint32)
    for mode in (9, 0, 4, 0):
        launch, out = Launch("wander", 32, mode, 64, grid=(20, 1, 1)), ((20, 64), np.uint32)
        if mode:
            with pytest.raises(HostFault, match=r"block \(.*, 0, 0\): thread"):
                kernels.run(launch, [given], out, workers=3)
        else:
            found = kernels.run(launch, [given], out, workers=3)
            np.testing.assert_array_equal(found, np.broadcast_to(given, (20, 64)))


def test_a_block_is_of_whole_warps(kernels: HostKernels) -> None:
    with pytest.raises(HostFault, match="a block of 40 threads is no number of whole warps"):
        kernels.run(Launch("diverge", 40), [np.zeros(64, np.uint32)], ((64,), np.uint32))
