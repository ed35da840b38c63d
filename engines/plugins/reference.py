"""The operators of binary layers in NumPy, as they are defined, with nothing clever: what every kernel is held to."""

from __future__ import annotations

import numpy as np

from engines.plugins.ops import WORD, ConvAttributes, GemmAttributes, PoolAttributes, pack_bits, unpack_bits

__all__ = [
    "binary_conv2d", "binary_dots", "binary_gemm", "binary_max_pool", "binary_pack", "binary_threshold",
    "binary_threshold2d", "finished",
]  # fmt: skip


def binary_pack(x: np.ndarray, thresholds: np.ndarray, *, strict: bool = False) -> np.ndarray:
    """FP32 [rows, channels, places...] -> INT32 [rows, places..., words]."""
    limits = thresholds.reshape(1, -1, *[1] * (x.ndim - 2))
    positive = x > limits if strict else x >= limits
    return pack_bits(np.moveaxis(~positive, 1, -1))


def binary_dots(bits: np.ndarray, weights: np.ndarray, attributes: ConvAttributes) -> np.ndarray:
    """The whole numbers of a convolution: INT64 [rows, filters, height', width']."""
    own, (filters, high, wide, _) = attributes, weights.shape
    depth = own.channels // own.group
    signs = np.where(unpack_bits(weights, depth), -1, 1)
    values = np.where(unpack_bits(bits, own.channels), own.low, 1)
    top, left, bottom, right = own.pads
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=own.pad_value)
    sizes = [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            padded.shape[1:3], (high, wide), own.dilations, own.strides, strict=True
        )
    ]
    found = np.zeros((len(bits), filters, *sizes), np.int64)
    for y in range(high):
        for x in range(wide):
            rows, columns = (
                slice(start * dilation, start * dilation + (size - 1) * stride + 1, stride)
                for start, dilation, size, stride in zip((y, x), own.dilations, sizes, own.strides, strict=True)
            )
            seen = padded[:, rows, columns]
            for group in range(own.group):
                of = slice(group * filters // own.group, (group + 1) * filters // own.group)
                part = seen[..., group * depth : (group + 1) * depth]
                found[:, of] += np.einsum("nhwc,oc->nohw", part, signs[of, y, x])
    return found


def binary_conv2d(
    bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray,
    attributes: ConvAttributes,
) -> np.ndarray:  # fmt: skip
    """FP32 [rows, filters, height', width']."""
    return finished(binary_dots(bits, weights, attributes), multiplier, bias, activation)


def finished(dots: np.ndarray, multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The floats of whole numbers [rows, filters, places...], every operation rounded once."""
    scale, add, shift, slope, offset = (
        np.asarray(row, np.float32).reshape(1, -1, *[1] * (dots.ndim - 2)) for row in (multiplier, bias, *activation)
    )
    v = dots.astype(np.float32) * scale + add
    found: np.ndarray = np.where(v > shift, v - shift, (v - shift) * slope) + offset
    return found


def binary_threshold2d(
    bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray, attributes: ConvAttributes
) -> np.ndarray:
    """INT32 [rows, height', width', words]."""
    dots = binary_dots(bits, weights, attributes)
    below = dots < thresholds.reshape(1, -1, 1, 1)
    return pack_bits(np.moveaxis(below, 1, -1) != unpack_bits(flips, len(thresholds)))


def binary_gemm(
    bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray,
    attributes: GemmAttributes,
) -> np.ndarray:  # fmt: skip
    """FP32 [rows, filters]."""
    return finished(_products(bits, weights, attributes), multiplier, bias, activation)


def binary_threshold(
    bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray, attributes: GemmAttributes
) -> np.ndarray:
    """INT32 [rows, words]."""
    below = _products(bits, weights, attributes) < thresholds
    return pack_bits(below != unpack_bits(flips, len(thresholds)))


def _products(bits: np.ndarray, weights: np.ndarray, attributes: GemmAttributes) -> np.ndarray:
    values = np.where(unpack_bits(bits, attributes.channels), attributes.low, 1)
    found: np.ndarray = values @ np.where(unpack_bits(weights, attributes.channels), -1, 1).T
    return found


def binary_max_pool(bits: np.ndarray, attributes: PoolAttributes) -> np.ndarray:
    """INT32 [rows, height', width', words]."""
    (top, left, bottom, right), negative = attributes.pads, unpack_bits(bits, bits.shape[-1] * WORD)
    padded = np.pad(negative, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=True)
    high, wide = (
        (kernel - 1) * dilation + 1
        for kernel, dilation in zip(attributes.kernel_shape, attributes.dilations, strict=True)
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (high, wide), axis=(1, 2))
    (sy, sx), (dy, dx) = attributes.strides, attributes.dilations
    return pack_bits(np.asarray(windows[:, ::sy, ::sx, :, ::dy, ::dx].all(axis=(-2, -1))))
