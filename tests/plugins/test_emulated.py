"""NEON's kernels over the same grid as those of this processor: cross-compiled, and run by qemu-aarch64."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from engines.plugins.ops import GemmAttributes, pack_bits
from engines.plugins.reference import binary_gemm, binary_threshold2d
from tests.plugins import test_kernels as grid
from tests.plugins.emulated import Emulated, build_driver, missing
from tests.plugins.test_operators import epilogue, random_bits

KERNELS = ("neon", "portable")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    absent = missing()
    if absent and os.environ.get("CI") != "true":
        pytest.skip(f"needs {', '.join(absent)}; see .ci/debian-packages.txt")
    assert not absent
    with Emulated(build_driver(tmp_path_factory.mktemp("aarch64"))) as program:
        yield program


def test_both_kernels_are_compiled_the_faster_first(emulated: Emulated) -> None:
    assert emulated.kernels() == emulated.usable() == KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
def test_channels_off_the_word(emulated: Emulated, kernel: str) -> None:
    grid.test_channels_off_the_word(emulated, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_of_a_sum(emulated: Emulated, kernel: str) -> None:
    grid.test_every_length_of_a_sum(emulated, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pad_value", [0, 1])
def test_borders_strides_and_dilations(emulated: Emulated, kernel: str, pad_value: int) -> None:
    grid.test_borders_strides_and_dilations(emulated, kernel, pad_value)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", [2, 3])
def test_groups(emulated: Emulated, kernel: str, group: int) -> None:
    grid.test_groups(emulated, kernel, group)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("negative", [True, False])
def test_sums_that_are_as_large_as_they_can_be(emulated: Emulated, kernel: str, negative: bool) -> None:
    grid.test_sums_that_are_as_large_as_they_can_be(emulated, kernel, negative)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_layers(emulated: Emulated, kernel: str, seed: int) -> None:
    grid.test_random_layers(emulated, kernel, seed)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("filters", [1, 31, 32, 33, 64, 70])
def test_thresholds(emulated: Emulated, kernel: str, filters: int) -> None:
    """Many dots are equal to their thresholds."""
    own, bits, weights, _, _ = grid.layer(20, filters, pads=(1, 1, 1, 1))
    rng = np.random.default_rng(filters)
    thresholds = rng.integers(-8, 9, filters).astype(np.int32)
    flips = pack_bits(rng.random(filters) < 0.5)
    expected = binary_threshold2d(bits, weights, thresholds, flips, own)
    np.testing.assert_array_equal(emulated.threshold2d(kernel, bits, weights, thresholds, flips, own), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("low", [-1, 0])
def test_products(emulated: Emulated, kernel: str, low: int) -> None:
    """With an activation of each channel."""
    for channels, filters, rows in ((1, 7, 1), (31, 33, 2), (64, 64, 33), (130, 100, 65)):
        own = GemmAttributes(channels=channels, low=-1 if low else 0)
        bits, weights = random_bits(rows, channels), random_bits(filters, channels, seed=1)
        floats = [*epilogue(filters, filters).values()]
        found = emulated.gemm(kernel, bits, weights, *floats, own)
        np.testing.assert_array_equal(found, binary_gemm(bits, weights, *floats, own))


@pytest.mark.parametrize("strict", [True, False])
def test_packing(emulated: Emulated, strict: bool) -> None:
    grid.check_packing(emulated, strict)
