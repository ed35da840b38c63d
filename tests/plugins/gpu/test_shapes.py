"""Shapes of what plugins read and make, as TensorRT asks for them before there is data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.plugins import reference
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import ConvAttributes, PoolAttributes, words_of
from tests.plugins.gpu.test_fields import made

SMALL = st.integers(1, 3)


@given(
    st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL),
    st.tuples(*[st.integers(0, 2)] * 4), st.sampled_from([(32, 1), (64, 2), (3, 1)]), SMALL, st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_convolutions_make_what_the_reference_makes(
    kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], pads: tuple[int, int, int, int],
    channels: tuple[int, int], rows: int, in_bits: bool,
) -> None:  # fmt: skip
    count, group = channels
    own = ConvAttributes(channels=count, group=group, strides=strides, dilations=dilations, pads=pads)
    filters = 34
    bits = np.zeros((rows, 9, 8, words_of(count)), np.int32)
    weights = np.zeros((filters, *kernel, words_of(count // group)), np.int32)
    laid_out, sums = gpu_weights(weights, group), gpu_sums(weights, count // group)
    if in_bits:
        limits, flips = np.zeros(filters, np.int32), np.zeros(2, np.int32)
        expected = reference.binary_threshold2d(bits, weights, limits, flips, own)
        operator, further = made("BinaryThreshold2d", **own.values(), kernel_shape=kernel), [limits, flips]
    else:
        plain = np.ones(filters, np.float32)
        further = [plain, plain, np.zeros((3, 1), np.float32)]
        expected = reference.binary_conv2d(bits, weights, plain, plain, further[2], own)
        operator = made("BinaryConv2d", **own.values(), kernel_shape=kernel, half=0)
    shapes = [array.shape for array in (bits, laid_out, sums, *further)]
    operator.require_shapes(shapes)
    assert tuple(operator.output_shape(shapes)) == expected.shape
    assert operator.datatype() == {"float32": "FP32", "int32": "INT32"}[str(expected.dtype)]


def test_the_others_make_what_the_reference_makes() -> None:
    assert made("BinaryPack").output_shape([(5, 70, 4, 3), (70,)]) == [5, 4, 3, 3]
    assert made("BinaryPack").output_shape([(5, 70), (70,)]) == [5, 3]
    assert made("BinaryGemm").output_shape([(5, 3), (40, 8)]) == [5, 40]
    assert made("BinaryThreshold").output_shape([(5, 3), (40, 8)]) == [5, 2]
    pool = PoolAttributes(kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
    bits = np.zeros((2, 9, 8, 3), np.int32)
    expected = reference.binary_max_pool(bits, pool).shape
    assert tuple(made("BinaryMaxPool", **pool.values()).output_shape([bits.shape])) == expected


FLOATS = [(2, 9, 9, 2), (40, 16), (40, 4, 3), (40,), (40,), (3, 40)]
BITS = [(2, 9, 9, 2), (40, 16), (40, 4, 3), (40,), (2,)]


@pytest.mark.parametrize(
    ("name", "position", "shape", "said"),
    [
        ("BinaryConv2d", 0, (2, 9, 9, 3), r"bits: found \[4, 3\], expected \[4, 2\]"),
        ("BinaryConv2d", 0, (2, 9, 2), r"bits: found \[3, 2\], expected \[4, 2\]"),
        ("BinaryConv2d", 1, (40, 24), r"weights: found \[24\], expected \[16\]"),
        ("BinaryConv2d", 2, (40, 3, 3), r"sums: found \[40, 3, 3\], expected \[40, 4, 3\]"),
        ("BinaryConv2d", 3, (39,), r"multiplier: found \[39\], expected \[40\]"),
        ("BinaryConv2d", 4, (40, 1), r"bias: found \[40, 1\], expected \[40\]"),
        ("BinaryConv2d", 5, (3, 2), r"activation has shape \[3, 2\]; expected \[3, 40\] or \[3, 1\]"),
        ("BinaryThreshold2d", 3, (41,), r"thresholds: found \[41\], expected \[40\]"),
        ("BinaryThreshold2d", 4, (1,), r"flips: found \[1\], expected \[2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, position: int, shape: tuple[int, ...], said: str) -> None:
    shapes = list(FLOATS if name == "BinaryConv2d" else BITS)
    made(name).require_shapes(shapes)
    shapes[position] = shape
    with pytest.raises(ValueError, match=said):
        made(name).require_shapes(shapes)


def test_what_is_not_known_yet_fits() -> None:
    made("BinaryConv2d").require_shapes([(-1, -1, -1, 2), *FLOATS[1:]])
    made("BinaryPack").require_shapes([(-1, 70, -1, -1), (70,)])
    with pytest.raises(ValueError, match=r"thresholds: found \[69\], expected \[70\]"):
        made("BinaryPack").require_shapes([(-1, 70, -1, -1), (69,)])
