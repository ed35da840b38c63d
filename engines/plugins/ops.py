"""The operators of binary layers (ONNX domain `bnn`): their schema, and bits in words.

Values are -1 and +1. They are packed 32 channels in a word, channel c in bit c % 32 of word c // 32, lowest first. A
set bit is -1, bits beyond the last channel are 0 (so +1, and the true number of channels travels as an attribute).
The layout is that of Larq Compute Engine (`core/bitpacking`), so that padding with +1 is padding with words of 0.

    BinaryPack    x FP32 [rows, channels, places...], thresholds FP32 [channels] -> INT32 [rows, places..., words]
                  -1 where not x >= threshold (with `strict` = 1: not x > threshold); NaN is -1
    BinaryConv2d  bits INT32 [rows, height, width, words], weights INT32 [filters, kernel height, kernel width, words of
                  a group], multiplier FP32 [filters], bias FP32 [filters] -> FP32 [rows, filters, height', width']
                  dot * multiplier + bias, each rounded once; dot is a whole number
    BinaryThreshold2d
                  the same bits and weights, thresholds INT32 [filters], flips INT32 [words] -> INT32 [rows, height',
                  width', words]; a value is -1 where (dot < threshold) != flip
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["DOMAIN", "VERSION", "ConvAttributes", "pack_bits", "unpack_bits", "words_of"]

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
    """

    channels: int
    group: int = 1
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if self.channels < 1 or self.group < 1 or self.channels % self.group:
            raise ValueError(f"{self.channels} channels do not make {self.group} groups")
        if self.group > 1 and self.channels // self.group % WORD:
            raise ValueError(f"groups of {self.channels // self.group} channels; expected a multiple of {WORD}")
        if min(*self.strides, *self.dilations) < 1 or min(self.pads) < 0:
            raise ValueError("strides and dilations start at 1, pads at 0")
        if self.pad_value not in (0, 1):
            raise ValueError(f"pad_value {self.pad_value}; expected 0 or 1")

    def values(self) -> dict[str, Any]:
        """By name, as a node has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}
