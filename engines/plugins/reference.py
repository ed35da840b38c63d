"""The operators of binary layers in NumPy, as they are defined, with nothing clever: what every kernel is held to."""

from __future__ import annotations

import numpy as np

from engines.plugins.ops import ConvAttributes, pack_bits, unpack_bits

__all__ = ["binary_conv2d", "binary_dots", "binary_pack", "binary_threshold2d"]


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
    values = np.where(_channels(bits, own), -1, 1)
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


def _channels(bits: np.ndarray, attributes: ConvAttributes) -> np.ndarray:
    return unpack_bits(bits, attributes.channels)


def binary_conv2d(
    bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray, attributes: ConvAttributes
) -> np.ndarray:
    """FP32 [rows, filters, height', width'] = dot * multiplier + bias, each rounded once."""
    dots = binary_dots(bits, weights, attributes).astype(np.float32)
    scaled: np.ndarray = dots * multiplier.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    return scaled


def binary_threshold2d(
    bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray, attributes: ConvAttributes
) -> np.ndarray:
    """INT32 [rows, height', width', words]."""
    dots = binary_dots(bits, weights, attributes)
    below = dots < thresholds.reshape(1, -1, 1, 1)
    return pack_bits(np.moveaxis(below, 1, -1) != unpack_bits(flips, len(thresholds)))
