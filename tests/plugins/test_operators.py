"""Every operator three ways: NumPy's definition, the ONNX body in ONNX Runtime, and the native one in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.plugins.ops import DOMAIN, VERSION, ConvAttributes, GemmAttributes, PoolAttributes, pack_bits
from engines.plugins.reference import (
    binary_conv2d,
    binary_gemm,
    binary_max_pool,
    binary_pack,
    binary_threshold,
    binary_threshold2d,
)  # fmt: skip
from engines.reference import Reference
from engines.runtime.openvino import core
from engines.targets import openvino as target
from tests.plugins.test_kernels import KERNELS, usable

compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT
Arrays = dict[str, np.ndarray]


def random_bits(*shape: int, seed: int = 0) -> np.ndarray:
    return pack_bits(np.random.default_rng(seed).random(shape) < 0.5)


def epilogue(filters: int, columns: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    multiplier, bias = rng.standard_normal((2, filters)).astype(np.float32)
    return {"m": multiplier, "b": bias, "a": rng.standard_normal((3, columns)).astype(np.float32)}


def three_ways(kind: str, data: np.ndarray, stored: Arrays, output: int, **attributes: Any) -> tuple[np.ndarray, ...]:
    """The answers of ONNX Runtime and of OpenVINO where there is an extension."""
    node = helper.make_node(kind, ["x", *stored], ["y"], domain=DOMAIN, **attributes)
    shape = [f"d{i}" for i in range(data.ndim - 1)] + [data.shape[-1]]
    given = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(data.dtype), shape)]
    graph = helper.make_graph(
        [node], "g", given, [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = with_bodies(helper.make_model(graph, opset_imports=imports, ir_version=10))
    found = [Reference(model)({"x": data})["y"]]
    if extension_path() is not None:
        opened = core().read_model(model.SerializeToString())
        assert kind in {op.get_type_name() for op in opened.get_ops()}, "not the body"
        engine = target.compile_model(opened, 1, 2)
        found.append(target.runner(engine, ["y"])({"x": data})["y"])
    return tuple(found)


def all_equal(expected: np.ndarray, found: tuple[np.ndarray, ...]) -> None:
    for answer in found:
        np.testing.assert_array_equal(answer, expected)


CONVOLUTIONS: list[dict[str, Any]] = [
    {}, {"low": 0}, {"pads": (1, 2, 0, 1)}, {"pads": (1, 2, 0, 1), "pad_value": 1},
    {"pads": (1, 2, 0, 1), "low": 0}, {"pads": (1, 2, 0, 1), "pad_value": 1, "low": 0},
    {"strides": (2, 3), "dilations": (2, 1)}, {"group": 2, "channels": 64, "low": 0, "pads": (1, 1, 1, 1)},
]  # fmt: skip


@pytest.mark.parametrize("columns", [1, 64])
@pytest.mark.parametrize("keys", CONVOLUTIONS)
def test_convolutions_to_floats(keys: dict[str, Any], columns: int) -> None:
    own = ConvAttributes(**{"channels": 40, **keys})
    bits, weights = random_bits(2, 8, 7, own.channels), random_bits(64, 3, 2, own.channels // own.group, seed=1)
    stored = epilogue(64, columns)
    expected = binary_conv2d(bits, weights, stored["m"], stored["b"], stored["a"], own)
    all_equal(expected, three_ways("BinaryConv2d", bits, {"w": weights, **stored}, FLOAT, **own.values()))


@pytest.mark.parametrize("keys", CONVOLUTIONS)
def test_convolutions_to_bits(keys: dict[str, Any]) -> None:
    own = ConvAttributes(**{"channels": 40, **keys})
    bits, weights = random_bits(2, 8, 7, own.channels), random_bits(64, 3, 2, own.channels // own.group, seed=1)
    stored = {"t": np.random.default_rng(2).integers(-30, 31, 64).astype(np.int32), "f": random_bits(64, seed=3)}
    expected = binary_threshold2d(bits, weights, stored["t"], stored["f"], own)
    all_equal(expected, three_ways("BinaryThreshold2d", bits, {"w": weights, **stored}, INT32, **own.values()))


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize(("channels", "filters", "rows"), [(1, 1, 1), (33, 40, 5), (100, 64, 70)])
def test_products(channels: int, filters: int, rows: int, low: int) -> None:
    own = GemmAttributes(channels=channels, low=-1 if low else 0)
    bits, weights, floats = (
        random_bits(rows, channels),
        random_bits(filters, channels, seed=1),
        epilogue(filters, filters),
    )
    expected = binary_gemm(bits, weights, floats["m"], floats["b"], floats["a"], own)
    all_equal(expected, three_ways("BinaryGemm", bits, {"w": weights, **floats}, FLOAT, **own.values()))
    rng = np.random.default_rng(2)
    whole = {"t": rng.integers(-channels, channels + 1, filters).astype(np.int32), "f": random_bits(filters, seed=3)}
    expected = binary_threshold(bits, weights, whole["t"], whole["f"], own)
    all_equal(expected, three_ways("BinaryThreshold", bits, {"w": weights, **whole}, INT32, **own.values()))


@pytest.mark.parametrize(
    "keys",
    [
        {"kernel_shape": (2, 2), "strides": (2, 2)}, {"kernel_shape": (3, 3), "strides": (2, 1), "pads": (1, 2, 0, 1)},
        {"kernel_shape": (2, 3), "dilations": (3, 2)}, {"kernel_shape": (1, 1)},
    ],
)  # fmt: skip
def test_pools(keys: dict[str, Any]) -> None:
    """Few bits are set by chance in all places of a window: most of them are here."""
    own = PoolAttributes(**keys)
    bits = pack_bits(np.random.default_rng(0).random((2, 9, 7, 70)) < 0.9)
    expected = binary_max_pool(bits, own)
    assert 0.05 < np.mean(np.unpackbits(expected.view(np.uint8))) < 0.95
    all_equal(expected, three_ways("BinaryMaxPool", bits, {}, INT32, **own.values()))


@pytest.mark.parametrize("shape", [(3, 40), (3, 40, 5), (2, 33, 4, 5)])
def test_packing_of_any_rank(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, thresholds = rng.integers(-2, 3, shape).astype(np.float32), rng.integers(-1, 2, shape[1]).astype(np.float32)
    expected = binary_pack(x, thresholds, strict=True)
    all_equal(expected, three_ways("BinaryPack", x, {"t": thresholds}, INT32, strict=1))


@compiled
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("low", [-1, 0])
def test_every_kernel_multiplies(kernel: str, low: int) -> None:
    native = Native()
    usable(native, kernel)
    for channels, filters, rows in ((1, 7, 1), (31, 33, 2), (64, 64, 33), (130, 100, 65)):
        own = GemmAttributes(channels=channels, low=-1 if low else 0)
        bits, weights = random_bits(rows, channels), random_bits(filters, channels, seed=1)
        floats = [*epilogue(filters, 1).values()]
        found = native.gemm(kernel, bits, weights, *floats, own)
        np.testing.assert_array_equal(found, binary_gemm(bits, weights, *floats, own))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PoolAttributes(kernel_shape=(2, 2), pads=(2, 0, 0, 0)), "expected fewer than its size"),
        (lambda: PoolAttributes(kernel_shape=(2, 2), strides=(0, 1)), "strides and dilations start at 1"),
        (lambda: ConvAttributes(channels=3, low=1), "low 1; expected 0 or 1, and -1 or 0"),  # type: ignore[arg-type]
    ],
)
def test_attributes_that_cannot_be_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
