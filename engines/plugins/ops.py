"""The operators of binary layers (ONNX domain `bnn`): their schema, and bits in words.

Values are -1 and +1. They are packed 32 channels in a word, channel c in bit c % 32 of word c // 32, lowest first. A
set bit is -1, bits beyond the last channel are 0 (so +1, and the true number of channels travels as an attribute).
The layout is that of Larq Compute Engine (`core/bitpacking`), so that padding with +1 is padding with words of 0.

    BinaryPack    x FP32 [rows, channels, places...], thresholds FP32 [channels] -> INT32 [rows, places..., words]
                  -1 where not x >= threshold (with `strict` = 1: not x > threshold); NaN is -1
    BinaryConv2d  bits INT32 [rows, height, width, words], weights INT32 [filters, kernel height, kernel width, words of
                  a group], multiplier FP32 [filters], bias FP32 [filters], activation FP32 [3, filters or 1] -> FP32
                  [rows, filters, height', width'], of whole numbers dot, every operation rounded once:
                      v = dot * multiplier + bias
                      v > shift ? (v - shift) + offset : (v - shift) * slope + offset
                  with shift, slope and offset the rows of `activation` (ReActNet's RPReLU, arXiv 2003.03488)
    BinaryThreshold2d
                  the same bits and weights, thresholds INT32 [filters], flips INT32 [words] -> INT32 [rows, height',
                  width', words]; a value is -1 where (dot < threshold) != flip
    BinaryGemm, BinaryThreshold
                  the same for products: bits INT32 [rows, words], weights INT32 [filters, words] -> FP32 [rows,
                  filters] and INT32 [rows, words]
    BinaryMaxPool bits INT32 [rows, height, width, words] -> INT32 [rows, height', width', words]: the largest value of
                  each channel in a window, which is -1 where all are; pads count as nothing

With `low` = 0, a set bit of an input is 0 and not -1: activations in {0, 1}. Weights, and bits that are written, are
-1 and +1 always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = [
    "DOMAIN", "VERSION", "ConvAttributes", "GemmAttributes", "PoolAttributes", "pack_bits", "places_after",
    "plain_activation", "unpack_bits", "words_of",
]  # fmt: skip

DOMAIN, VERSION = "bnn", 1
WORD = 32


def words_of(channels: int) -> int:
    """Words that hold so many channels."""
    return (channels + WORD - 1) // WORD


def pack_bits(negative: np.ndarray) -> np.ndarray:
    """Bits of the last axis in INT32 words: BOOL [..., channels] -> INT32 [..., words]."""
    channels = negative.shape[-1]
    whole = np.zeros((*negative.shape[:-1], words_of(channels) * WORD), bool)
    whole[..., :channels] = negative
    octets = np.packbits(whole, axis=-1, bitorder="little")
    words: np.ndarray = np.ascontiguousarray(octets).view("<i4")
    return words


def unpack_bits(words: np.ndarray, channels: int) -> np.ndarray:
    """The reverse: INT32 [..., words] -> BOOL [..., channels], True where the value is -1."""
    octets = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    bits: np.ndarray = np.unpackbits(octets, axis=-1, bitorder="little")[..., :channels].astype(bool)
    return bits


@dataclass(frozen=True, kw_only=True)
class ConvAttributes:
    """Those of a BinaryConv2d or BinaryThreshold2d. `channels` counts all of the input; with several groups, those of a
    group are a multiple of 32. `pads` are top, left, bottom, right, and count as `pad_value`: +1, or 0 for nothing.
    `low` is what a set bit of the input stands for: -1 or 0.
    """

    channels: int
    group: int = 1
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: Literal[0, 1] = 0
    low: Literal[-1, 0] = -1

    def __post_init__(self) -> None:
        if self.channels < 1 or self.group < 1 or self.channels % self.group:
            raise ValueError(f"{self.channels} channels do not make {self.group} groups")
        if self.group > 1 and self.channels // self.group % WORD:
            raise ValueError(f"groups of {self.channels // self.group} channels; expected a multiple of {WORD}")
        _check_window(self.strides, self.dilations, self.pads)
        if self.pad_value not in (0, 1) or self.low not in (-1, 0):
            raise ValueError(f"pad_value {self.pad_value}, low {self.low}; expected 0 or 1, and -1 or 0")

    def values(self) -> dict[str, Any]:
        """By name, as a node has them."""
        return _as_node_has(self)


@dataclass(frozen=True, kw_only=True)
class GemmAttributes:
    """Those of a BinaryGemm or BinaryThreshold."""

    channels: int
    low: Literal[-1, 0] = -1

    def values(self) -> dict[str, Any]:
        """By name, as a node has them."""
        return _as_node_has(self)

    def as_convolution(self) -> ConvAttributes:
        """The same product as a convolution of one place."""
        return ConvAttributes(channels=self.channels, low=self.low)


@dataclass(frozen=True, kw_only=True)
class PoolAttributes:
    """Those of a BinaryMaxPool. `pads` are top, left, bottom, right; every window reaches into the input."""

    kernel_shape: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        _check_window(self.strides, self.dilations, self.pads)
        (high, wide), (top, left, bottom, right) = self.kernel_shape, self.pads
        if max(top, bottom) >= high or max(left, right) >= wide:
            raise ValueError(f"pads {self.pads} of a window of {high} x {wide}; expected fewer than its size")

    def values(self) -> dict[str, Any]:
        """By name, as a node has them."""
        return _as_node_has(self)


def plain_activation() -> np.ndarray:
    """That which changes nothing: FP32 [3, 1]."""
    return np.array([[0], [1], [0]], np.float32)


def places_after(sizes: Sequence[Any], kernel: Sequence[int], own: ConvAttributes | PoolAttributes) -> list[Any]:
    """Height and width of what a window of `kernel` makes of `sizes`, which may be anything that adds and divides."""
    return [
        (size + before + after - ((span - 1) * dilation + 1)) // stride + 1
        for size, before, after, span, dilation, stride in zip(
            sizes, own.pads[:2], own.pads[2:], kernel, own.dilations, own.strides, strict=True
        )
    ]


def _check_window(strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...]) -> None:
    if min(*strides, *dilations) < 1 or min(pads) < 0:
        raise ValueError("strides and dilations start at 1, pads at 0")


def _as_node_has(attributes: ConvAttributes | GemmAttributes | PoolAttributes) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.__dict__.items()}
