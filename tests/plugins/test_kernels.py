"""Every kernel of binary layers against the reference, over the edges of its shapes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError
from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.plugins.ops import ConvAttributes, pack_bits, plain_activation, unpack_bits, words_of
from engines.plugins.reference import binary_conv2d, binary_dots, binary_pack

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
KERNELS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="module")
def native() -> Native:
    return Native()


def usable(native: Native, kernel: str) -> str:
    if kernel not in native.usable():
        pytest.skip(f"this processor has no {kernel}")
    return kernel


def layer(
    channels: int, filters: int, size: tuple[int, int] = (5, 6), kernel: tuple[int, int] = (3, 3), rows: int = 2,
    seed: int = 0, **keys: Any,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Attributes, and random bits, weights, multiplier and bias; bits beyond the channels are 0."""
    own = ConvAttributes(channels=channels, **keys)
    rng = np.random.default_rng(seed)
    bits = pack_bits(rng.random((rows, *size, channels)) < 0.5)
    weights = pack_bits(rng.random((filters, *kernel, channels // own.group)) < 0.5)
    multiplier, bias = rng.standard_normal((2, filters)).astype(np.float32)
    return own, bits, weights, multiplier, bias


def check(native: Native, kernel: str, *given: Any) -> None:
    own, bits, weights, multiplier, bias = given
    expected = binary_conv2d(bits, weights, multiplier, bias, plain_activation(), own)
    np.testing.assert_array_equal(
        native.conv2d(kernel, bits, weights, multiplier, bias, plain_activation(), own), expected
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_channels_off_the_word(native: Native, kernel: str) -> None:
    """Bit for bit: the sums are whole numbers, and the floats are rounded in one order."""
    usable(native, kernel)
    for channels, filters in itertools.product(
        (1, 3, 31, 32, 33, 63, 64, 65, 96, 130), (1, 7, 31, 32, 33, 64, 65, 130)
    ):
        check(native, kernel, *layer(channels, filters, rows=1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_of_a_sum(native: Native, kernel: str) -> None:
    usable(native, kernel)
    for channels in range(1, 131):
        check(native, kernel, *layer(channels, 33, size=(1, 1), kernel=(1, 1), rows=5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("pad_value", [0, 1])
def test_borders_strides_and_dilations(native: Native, kernel: str, pad_value: int) -> None:
    usable(native, kernel)
    pads = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0), (3, 3, 3, 3))
    for strides, dilations, pad in itertools.product(((1, 1), (2, 1), (3, 2)), ((1, 1), (2, 1)), pads):
        keys = {"strides": strides, "dilations": dilations, "pads": pad, "pad_value": pad_value}
        check(native, kernel, *layer(40, 24, size=(8, 7), kernel=(3, 2), **keys))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", [2, 3])
def test_groups(native: Native, kernel: str, group: int) -> None:
    usable(native, kernel)
    check(native, kernel, *layer(64 * group, 20 * group, group=group, pads=(1, 1, 1, 1)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("negative", [True, False])
def test_sums_that_are_as_large_as_they_can_be(native: Native, kernel: str, negative: bool) -> None:
    """All of 73,728 bits differ: the bytes and 16 bits of the look-up overflow where they are widened too late."""
    usable(native, kernel)
    own = ConvAttributes(channels=8192)
    bits = pack_bits(np.ones((1, 3, 3, 8192), bool))
    weights = pack_bits(np.full((33, 3, 3, 8192), not negative))
    one, zero = np.ones(33, np.float32), np.zeros(33, np.float32)
    found = native.conv2d(kernel, bits, weights, one, zero, plain_activation(), own)
    assert np.unique(found).tolist() == [-73728.0 if negative else 73728.0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_layers(native: Native, kernel: str, seed: int) -> None:
    usable(native, kernel)
    rng = np.random.default_rng(seed)
    high, wide = rng.integers(1, 5, 2).tolist()
    keys = {
        "strides": tuple(rng.integers(1, 4, 2).tolist()), "pads": tuple(rng.integers(0, 3, 4).tolist()),
        "pad_value": int(rng.integers(0, 2)), "low": int(rng.integers(-1, 1)),
    }  # fmt: skip
    size = tuple((rng.integers(4, 12, 2)).tolist())
    given = layer(int(rng.integers(1, 200)), int(rng.integers(1, 100)), size, (high, wide), 3, seed, **keys)
    check(native, kernel, *given)


def check_packing(native: Native, strict: bool) -> None:
    rng = np.random.default_rng(0)
    for channels, places in itertools.product((1, 31, 32, 33, 70), (1, 7, 31, 32, 33, 63, 64, 65, 200)):
        x = rng.integers(-2, 3, (channels, places)).astype(np.float32)  # many are equal to their thresholds
        x[0, 0], x[-1, -1] = np.nan, -0.0
        thresholds = rng.integers(-1, 2, channels).astype(np.float32)
        found = native.pack(x, thresholds, strict=strict)
        np.testing.assert_array_equal(found, binary_pack(x[None], thresholds, strict=strict)[0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("strict", [True, False])
def test_packing(native: Native, kernel: str, strict: bool) -> None:
    native.pin(usable(native, kernel))
    try:
        check_packing(native, strict)
    finally:
        native.pin("")


def test_what_is_packed_can_be_read_again() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 31, 32, 33, 100):
        bits = rng.random((2, 3, channels)) < 0.5
        words = pack_bits(bits)
        assert words.shape == (2, 3, words_of(channels))
        np.testing.assert_array_equal(unpack_bits(words, channels), bits)
        whole = unpack_bits(words, words.shape[-1] * 32)
        assert not whole[..., channels:].any(), "bits beyond the channels are 0"


def test_the_reference_is_a_convolution_of_signs() -> None:
    """Against another one: ONNX Runtime's, of floats."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    for pad_value, group in itertools.product((0, 1), (1, 2)):
        own, bits, weights, _, _ = layer(
            64, 6, group=group, strides=(2, 1), dilations=(1, 2), pads=(1, 2, 0, 1), pad_value=pad_value
        )
        x = np.moveaxis(np.where(unpack_bits(bits, 64), -1, 1), -1, 1).astype(np.float32)
        w = np.moveaxis(np.where(unpack_bits(weights, 64 // group), -1, 1), -1, 1).astype(np.float32)
        top, left, bottom, right = own.pads
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad_value)
        node = helper.make_node("Conv", ["x", "w"], ["y"], strides=own.strides, dilations=own.dilations, group=group)
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in (("x", x), ("w", w))]
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
        model = helper.make_model(
            helper.make_graph([node], "g", infos, [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
        expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "w": w})[0]
        np.testing.assert_array_equal(binary_dots(bits, weights, own), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_speed_of_a_product_is_that_of_a_processor(native: Native, kernel: str) -> None:
    """Some bits a cycle, and no more than four registers of them."""
    rate = native.product_rate(usable(native, kernel), 70, 100, 5, 20)
    assert 1 < rate < 2048


def test_a_kernel_can_be_pinned(native: Native) -> None:
    try:
        for kernel in native.usable():
            native.pin(kernel)
            assert native.chosen == kernel
        with pytest.raises(EngineError, match="no kernel 'sse9' here; expected one of"):
            native.pin("sse9")
    finally:
        native.pin("")
    assert native.chosen == native.usable()[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"channels": 0}, "0 channels do not make 1 groups"),
        ({"channels": 66, "group": 4}, "66 channels do not make 4 groups"),
        ({"channels": 66, "group": 2}, "groups of 33 channels; expected a multiple of 32"),
        ({"channels": 32, "strides": (0, 1)}, "strides and dilations start at 1"),
        ({"channels": 32, "pads": (-1, 0, 0, 0)}, "pads at 0"),
        ({"channels": 32, "pad_value": 2}, "pad_value 2, low -1; expected 0 or 1"),
    ],
)
def test_attributes_that_cannot_be_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ConvAttributes(**keys)
