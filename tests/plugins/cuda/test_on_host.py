"""The GPU's kernels, run on this processor, against the reference: over the edges of the shapes, bit for bit.

Each launch has all of its blocks, warps and lanes in another order. SM 80 multiplies bits by XOR, 90 by AND.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from engines.plugins.cuda import launches
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes, pack_bits, plain_activation, words_of
from engines.plugins.reference import (
    binary_dots,
    binary_gemm,
    binary_max_pool,
    binary_pack,
    binary_threshold,
    binary_threshold2d,
    finished,
)
from tests.plugins.cuda.on_host import HostBuild
from tests.plugins.cuda.on_host_layers import TACTICS, HostLayers
from tests.plugins.test_kernels import layer
from tests.plugins.test_operators import random_bits


@pytest.fixture(scope="module", params=[80, 90])
def layers(request: pytest.FixtureRequest, build: HostBuild) -> HostLayers:
    return HostLayers(build, request.param)


def check(layers: HostLayers, *given: Any, tactics: Iterable[launches.Tactic] = TACTICS, columns: int = 1) -> None:
    """All that a layer can answer. Many sums lie at their thresholds, and on the bend of the activation."""
    own, bits, weights, multiplier, bias = given
    rng = np.random.default_rng(columns)
    filters, dots = len(weights), binary_dots(bits, weights, own)
    activation = rng.standard_normal((3, columns)).astype(np.float32)
    thresholds = rng.choice(dots.ravel(), filters).astype(np.int32)
    multiplier[::3], bias[::3], activation[0, ::3] = 1, 0, thresholds[0]
    flips = pack_bits(rng.random(filters) < 0.5)
    expected = finished(dots, multiplier, bias, activation)
    with np.errstate(over="ignore"):
        halves = expected.astype(np.float16)
    answers = binary_threshold2d(bits, weights, thresholds, flips, own)
    for tactic in tactics:
        of = multiplier, bias, activation
        np.testing.assert_array_equal(layers.floats(tactic, bits, weights, of, own), expected)
        np.testing.assert_array_equal(layers.floats(tactic, bits, weights, of, own, "FP16"), halves)
        if own.group == 1 or filters // own.group % 32 == 0:
            np.testing.assert_array_equal(layers.bits(tactic, bits, weights, thresholds, flips, own), answers)


def two_of(number: int) -> list[launches.Tactic]:
    """For long lists of shapes, where all tiles have their turn."""
    return [TACTICS[number % len(TACTICS)], TACTICS[(number + 2) % len(TACTICS)]]


@pytest.mark.parametrize("filters", [1, 7, 31, 32, 33, 64, 65, 130])
def test_channels_off_the_word(layers: HostLayers, filters: int) -> None:
    for channels in (1, 3, 31, 32, 33, 63, 64, 65, 96, 128, 130, 256):
        check(layers, *layer(channels, filters, rows=1), columns=filters)


def test_every_length_of_a_sum(layers: HostLayers) -> None:
    for channels in range(1, 131):
        check(layers, *layer(channels, 33, size=(1, 1), kernel=(1, 1), rows=5), tactics=two_of(channels))


@pytest.mark.parametrize("taps", range(1, 12))
def test_windows_of_few_and_of_many_steps(layers: HostLayers, taps: int) -> None:
    """Rows of 8 to 88 words: loops that end within a stage, and before all stages were filled."""
    for words in (1, 2, 4, 8):
        check(layers, *layer(32 * words, 40, size=(2, taps + 3), kernel=(1, taps), rows=1))


@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0), (3, 3, 3, 3), (5, 0, 0, 7)])
def test_borders_strides_and_dilations(layers: HostLayers, pads: tuple[int, ...], low: int, pad_value: int) -> None:
    sides = itertools.product(((1, 1), (2, 1), (3, 2)), ((1, 1), (2, 1), (1, 3)))
    for number, (strides, dilations) in enumerate(sides):
        keys = {"strides": strides, "dilations": dilations, "pads": pads, "pad_value": pad_value, "low": low}
        check(layers, *layer(40, 24, size=(8, 7), kernel=(3, 2), **keys), tactics=two_of(number))


def test_the_widest_windows(layers: HostLayers) -> None:
    """112 rows of taps, and those that a stage has behind them, are what seven bits count."""
    check(layers, *layer(32, 8, size=(3, 7), kernel=(2, 112), rows=1, pads=(0, 60, 1, 70)))
    check(layers, *layer(32, 8, size=(7, 2), kernel=(112, 1), rows=1, pads=(60, 0, 70, 0), low=0))
    check(layers, *layer(32, 8, size=(113, 2), kernel=(112, 1), rows=1))


def test_numbers_near_their_limits(layers: HostLayers) -> None:
    """One tap far above the image, or far below, and one in it."""
    far = 2**28
    for ky, pads in enumerate([(0, 0, far, 0), (far, 0, 0, 0)]):
        own, bits, weights, multiplier, bias = layer(70, 33, size=(1, 1), kernel=(2, 1), pads=pads, dilations=(far, 1))
        epilogue = multiplier, bias, plain_activation()
        seen = ConvAttributes(channels=70)
        expected = finished(binary_dots(bits, weights[:, ky : ky + 1], seen), *epilogue)
        np.testing.assert_array_equal(layers.floats(TACTICS[0], bits, weights, epilogue, own), expected)


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("group_filters", [20, 32, 96])
def test_groups(layers: HostLayers, group: int, group_filters: int) -> None:
    for depth in (32, 64, 96, 128):
        for keys in ({"low": 0}, {"pad_value": 1}):
            given = layer(depth * group, group_filters * group, group=group, pads=(1, 1, 1, 1), **keys)
            check(layers, *given, columns=group_filters * group)


@pytest.mark.parametrize("negative", [True, False])
def test_sums_that_are_as_large_as_they_can_be(layers: HostLayers, negative: bool) -> None:
    own = ConvAttributes(channels=8192)
    bits = pack_bits(np.ones((1, 3, 3, 8192), bool))
    weights = pack_bits(np.full((33, 3, 3, 8192), not negative))
    one, zero = np.ones(33, np.float32), np.zeros(33, np.float32)
    for tactic in TACTICS:
        found = layers.floats(tactic, bits, weights, (one, zero, plain_activation()), own)
        assert np.unique(found).tolist() == [-73728.0 if negative else 73728.0]


@pytest.mark.parametrize("seed", range(20))
def test_random_layers(layers: HostLayers, seed: int) -> None:
    rng = np.random.default_rng(seed)
    high, wide = rng.integers(1, 5, 2).tolist()
    keys = {
        "strides": tuple(rng.integers(1, 4, 2).tolist()), "pads": tuple(rng.integers(0, 3, 4).tolist()),
        "pad_value": int(rng.integers(0, 2)), "low": int(rng.integers(-1, 1)),
    }  # fmt: skip
    size = tuple((rng.integers(4, 12, 2)).tolist())
    filters = int(rng.integers(1, 200))
    given = layer(int(rng.integers(1, 300)), filters, size, (high, wide), 3, seed, **keys)
    check(layers, *given, columns=filters if seed % 2 else 1)


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: tactic.name)
def test_orders(layers: HostLayers, tactic: launches.Tactic) -> None:
    """Many tiles each way, and stages that are used several times."""
    given = layer(160, 136, size=(9, 8), rows=3, pads=(1, 1, 1, 1), low=0)
    for _ in range(4):
        check(layers, *given, tactics=[tactic])


def test_a_layer_of_a_real_network(layers: HostLayers) -> None:
    given = layer(256, 256, size=(14, 14), rows=1, pads=(1, 1, 1, 1))
    check(layers, *given, columns=256)


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize("rows", [1, 2, 17, 64, 131])
def test_products(layers: HostLayers, rows: int, low: int) -> None:
    """Filters lie side by side in the output."""
    for channels, filters in ((1, 7), (31, 33), (64, 64), (130, 100), (1000, 10), (256, 136)):
        own = GemmAttributes(channels=channels, low=-1 if low else 0)
        bits, weights = random_bits(rows, channels), random_bits(filters, channels, seed=1)
        rng = np.random.default_rng(filters)
        epilogue = *rng.standard_normal((2, filters)).astype(np.float32), np.ones((3, filters), np.float32)
        thresholds, flips = rng.integers(-8, 9, filters).astype(np.int32), random_bits(filters)
        expected = binary_gemm(bits, weights, *epilogue, own)
        answers = binary_threshold(bits, weights, thresholds, flips, own)
        given = bits[:, None, None], weights[:, None, None]
        for tactic in TACTICS:
            found = layers.floats(tactic, *given, epilogue, own.as_convolution())
            np.testing.assert_array_equal(found[:, :, 0, 0], expected)
            halves = layers.floats(tactic, *given, epilogue, own.as_convolution(), "FP16")
            np.testing.assert_array_equal(halves[:, :, 0, 0], expected.astype(np.float16))
            signs = layers.bits(tactic, *given, thresholds, flips, own.as_convolution())
            np.testing.assert_array_equal(signs[:, 0, 0], answers)


def test_floats_beyond_the_largest_half_and_none_at_all(layers: HostLayers) -> None:
    """Rounded once, to infinity too; what is not a number stays none."""
    own, bits, weights, _, _ = layer(33, 8, pads=(1, 1, 1, 1))
    multiplier = np.array([1e3, 1e4, 3e4, 1e38, np.inf, np.nan, 2**-20, 1e-42], np.float32)
    bias, activation = np.array([0, 0, 0, 1e38, 0, 0, 2**-25, 0], np.float32), plain_activation()
    with np.errstate(all="ignore"):
        expected = finished(binary_dots(bits, weights, own), multiplier, bias, activation)
        halves = expected.astype(np.float16)
    assert np.isinf(halves).any()
    assert np.isnan(halves).any()
    of = multiplier, bias, activation
    np.testing.assert_array_equal(layers.floats(TACTICS[0], bits, weights, of, own), expected)
    np.testing.assert_array_equal(layers.floats(TACTICS[0], bits, weights, of, own, "FP16"), halves)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("datatype", [np.float32, np.float16])
def test_packing(layers: HostLayers, datatype: type, strict: bool) -> None:
    """Many values are equal to their thresholds."""
    rng = np.random.default_rng(0)
    channels = (1, 7, 8, 9, 31, 32, 33, 70, 300)
    for count, places in itertools.product(
        channels, ((), (1,), (2, 1), (7,), (4, 8), (3, 11), (64,), (2, 100), (260,))
    ):
        x = rng.integers(-2, 3, (3, count, *places)).astype(datatype)
        x.ravel()[[0, -1]] = np.nan, -0.0
        thresholds = rng.integers(-1, 2, count).astype(np.float32)
        expected = binary_pack(x.astype(np.float32), thresholds, strict=strict)
        np.testing.assert_array_equal(layers.pack(x, thresholds, strict=strict), expected)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("channels", [1, 32, 100, 128, 250, 256])
def test_pools(layers: HostLayers, channels: int, kernel: tuple[int, int]) -> None:
    bits = pack_bits(np.random.default_rng(0).random((3, 9, 8, channels)) < 0.9)
    high, wide = kernel
    for strides, dilations in itertools.product(((1, 1), (2, 3)), ((1, 1), (2, 1))):
        for pads in {(0, 0, 0, 0), (high - 1, 0, 0, wide - 1), (0, wide - 1, high - 1, 0)}:
            own = PoolAttributes(kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads)
            np.testing.assert_array_equal(layers.max_pool(bits, own), binary_max_pool(bits, own))


def test_more_images_than_a_grid_has_blocks(layers: HostLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block takes several: as if a grid had two of them along an axis."""
    monkeypatch.setattr(launches, "GRID_YZ", 2)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 40, 5, 4)).astype(np.float32)
    thresholds = np.zeros(40, np.float32)
    bits = binary_pack(x, thresholds)
    np.testing.assert_array_equal(layers.pack(x, thresholds), bits)
    own = PoolAttributes(kernel_shape=(2, 2))
    np.testing.assert_array_equal(layers.max_pool(bits, own), binary_max_pool(bits, own))
    assert bits.shape[-1] == words_of(40)


def test_every_kernel_of_a_file_is_launched(build: HostBuild) -> None:
    """By some shape: no tile and no width is left out here, nor is any compiled that nothing asks for."""
    layers = HostLayers(build, 80)
    for channels in (32, 64, 128):
        check(layers, *layer(channels, 8, size=(3, 3), rows=1))
    for datatype, places in itertools.product((np.float32, np.float16), (1, 2, 3, 4, 8)):
        x = np.ones((1, 9, places), datatype)
        assert not layers.pack(x, np.zeros(9, np.float32)).any()
    for words in (1, 4):
        assert not layers.max_pool(np.zeros((1, 2, 2, words), np.int32), PoolAttributes(kernel_shape=(2, 2))).any()
    assert layers.launched == {entry for name in launches.POINTERS for entry in layers.kernels(name).entries()}


def test_what_one_kernel_writes_another_reads(layers: HostLayers) -> None:
    """A small network: packed, convolved to bits, pooled, convolved to halves."""
    rng = np.random.default_rng(0)
    x, limits = rng.standard_normal((2, 40, 9, 8)).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    first, _, weights, _, _ = layer(40, 70, pads=(1, 1, 1, 1))
    second, _, last, *scales = layer(70, 10, kernel=(2, 2))
    thresholds, flips = rng.integers(-20, 20, 70).astype(np.int32), random_bits(70)
    pool = PoolAttributes(kernel_shape=(2, 2), strides=(2, 2))
    pooled = binary_max_pool(binary_threshold2d(binary_pack(x, limits), weights, thresholds, flips, first), pool)
    expected = finished(binary_dots(pooled, last, second), *scales, plain_activation()).astype(np.float16)
    for tactic in TACTICS:
        bits = layers.bits(tactic, layers.pack(x, limits), weights, thresholds, flips, first)
        epilogue = *scales, plain_activation()
        found = layers.floats(tactic, layers.max_pool(bits, pool), last, epilogue, second, "FP16")
        np.testing.assert_array_equal(found, expected)
