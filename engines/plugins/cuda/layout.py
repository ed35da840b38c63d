"""Weights as the kernels of the GPU want them: rows of whole steps, and the sums that take outside taps back."""

from __future__ import annotations

import numpy as np

from engines.plugins.ops import unpack_bits

__all__ = ["STEP_WORDS", "gpu_sums", "gpu_weights", "row_words_of"]

STEP_WORDS = 8
"""Words of a row that one instruction takes."""


def row_words_of(kernel: tuple[int, int], group_words: int) -> int:
    """Words of a filter's row: all taps, rounded up to whole steps."""
    return -(-kernel[0] * kernel[1] * group_words // STEP_WORDS) * STEP_WORDS


def gpu_weights(weights: np.ndarray, group: int = 1) -> np.ndarray:
    """INT32 [filters, height, width, words of a group] -> INT32 [filters, row_words]: tap by tap, then zeros.

    Groups lie one after the other, as they do in the operators' weights.
    """
    filters, high, wide, words = weights.shape
    if filters % group:
        raise ValueError(f"{filters} filters do not make {group} groups")
    rows = np.zeros((filters, row_words_of((high, wide), words)), np.int32)
    rows[:, : high * wide * words] = weights.reshape(filters, -1)
    return rows


def gpu_sums(weights: np.ndarray, depth: int) -> np.ndarray:
    """INT32 [filters, height, width, words] of `depth` channels -> INT32 [filters, height + 1, width + 1].

    Entry [o, y, x] is the sum of filter o's -1 and +1 over all channels of the taps above y and left of x. So any
    rectangle of taps is the sum of four entries, and the last entry is the sum of all.
    """
    filters, high, wide, _ = weights.shape
    taps = np.where(unpack_bits(weights, depth), -1, 1).sum(axis=-1, dtype=np.int64)
    sums = np.zeros((filters, high + 1, wide + 1), np.int32)
    sums[:, 1:, 1:] = taps.cumsum(axis=1).cumsum(axis=2)
    return sums
