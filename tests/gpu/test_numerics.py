"""Every operator by its plugin, every tactic, equal to the reference bit for bit. A GPU has not run this yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError
from engines.plugins.cuda.launches import TACTICS
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import GemmAttributes, PoolAttributes, pack_bits
from engines.plugins.reference import binary_gemm, binary_max_pool, binary_pack, binary_threshold, binary_threshold2d
from tests.gpu.conftest import XOR
from tests.gpu.layers import PluginLayers
from tests.gpu.machines import Machine
from tests.gpu.plugins import Plugins
from tests.plugins.cuda.test_on_host import check
from tests.plugins.test_kernels import layer
from tests.plugins.test_operators import random_bits
from tests.targets.gpu.on_host import Host

BORDERS = {"pads": (1, 2, 1, 0), "strides": (2, 1), "dilations": (1, 2)}
FEW: list[dict[str, Any]] = [
    {"channels": 64, "filters": 64, "pads": (1, 1, 1, 1)},
    {"channels": 40, "filters": 33, "size": (7, 8), "low": 0, **BORDERS},
    {"channels": 192, "filters": 96, "group": 3, "rows": 1, "pad_value": 1, "pads": (1, 1, 1, 1)},
    {"channels": 300, "filters": 36, "size": (1, 1), "kernel": (1, 1), "rows": 18},
]


@pytest.mark.parametrize("keys", FEW)
def test_convolutions(layers: PluginLayers, keys: dict[str, Any]) -> None:
    check(layers, *layer(**keys), columns=keys["filters"])  # type: ignore[arg-type]


@pytest.mark.parametrize("low", [-1, 0])
def test_products(layers: PluginLayers, low: Any) -> None:
    own = GemmAttributes(channels=300, low=low)
    rng = np.random.default_rng(5)
    for rows, filters in ((1, 10), (70, 136)):
        bits, weights = random_bits(rows, 300), random_bits(filters, 300, seed=1)
        epilogue = *rng.standard_normal((2, filters)).astype(np.float32), np.ones((3, 1), np.float32)
        limits = rng.integers(-8, 9, filters).astype(np.int32), random_bits(filters)
        expected = binary_gemm(bits, weights, *epilogue, own)
        for tactic in (None, *TACTICS):
            np.testing.assert_array_equal(layers.product(tactic, bits, weights, epilogue, own), expected)
            halves = layers.product(tactic, bits, weights, epilogue, own, "FP16")
            np.testing.assert_array_equal(halves, expected.astype(np.float16))
            signs = layers.product_bits(tactic, bits, weights, *limits, own)
            np.testing.assert_array_equal(signs, binary_threshold(bits, weights, *limits, own))


@pytest.mark.parametrize("datatype", [np.float32, np.float16])
@pytest.mark.parametrize("strict", [True, False])
def test_packing(layers: PluginLayers, strict: bool, datatype: type) -> None:
    rng = np.random.default_rng(0)
    for channels, places in ((70, ()), (33, (7,)), (300, (3, 11)), (64, (16, 16))):
        x = rng.integers(-2, 3, (3, channels, *places)).astype(datatype)
        x.ravel()[[0, -1]] = np.nan, -0.0
        thresholds = rng.integers(-1, 2, channels).astype(np.float32)
        expected = binary_pack(x.astype(np.float32), thresholds, strict=strict)
        np.testing.assert_array_equal(layers.pack(x, thresholds, strict=strict), expected)


@pytest.mark.parametrize("channels", [70, 128])
def test_pooling(layers: PluginLayers, channels: int) -> None:
    bits = pack_bits(np.random.default_rng(0).random((2, 9, 8, channels)) < 0.9)
    own = PoolAttributes(kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
    np.testing.assert_array_equal(layers.max_pool(bits, own), binary_max_pool(bits, own))


def test_what_was_captured_is_replayed_on_other_bits(machine: Machine) -> None:
    """Kernels are loaded when shapes are set: a capture holds launches alone, and its addresses."""
    own, bits, weights, _, _ = layer(64, 40, pads=(1, 1, 1, 1))
    limits = np.random.default_rng(1).integers(-9, 9, 40).astype(np.int32), random_bits(40)
    given = [bits, gpu_weights(weights), gpu_sums(weights, 64), *limits]
    out, read = np.empty((*bits.shape[:3], 2), np.int32), np.empty((*bits.shape[:3], 2), np.int32)
    with Plugins(machine) as plugins:
        plugin = plugins.made("BinaryThreshold2d", {**own.values(), "kernel_shape": (3, 3)})
        with plugins.bound(plugin, given, out) as bound, machine.captured(bound.enqueue) as replay:
            machine.read(bound.addresses[-1], read)
            assert set(read.tobytes()) == {0xCD}, "nothing has run yet"
            for other in (bits, ~bits, bits[::-1]):
                machine.write(bound.addresses[0], other)
                replay()
                machine.read(bound.addresses[-1], read)
                np.testing.assert_array_equal(read, binary_threshold2d(other, weights, *limits, own))


def test_a_plugin_that_loads_a_kernel_while_it_is_captured_is_found(host: Callable[[int], Host]) -> None:
    """Planted: shapes are set, and then its kernels are forgotten. What a GPU's driver says of it is not known."""
    bits, machine = random_bits(2, 4, 4, 64), host(XOR)
    with Plugins(machine) as plugins:
        plugin = plugins.made("BinaryMaxPool", PoolAttributes(kernel_shape=(2, 2)).values())
        with plugins.bound(plugin, [bits], np.empty((2, 3, 3, 2), np.int32)) as bound:
            plugins.kernels.close()
            with (
                pytest.raises(EngineError, match="a module is loaded while launches are captured"),
                machine.captured(bound.enqueue),
            ):
                pass
