"""Weights of the GPU hold what the operators' weights hold; sums over rectangles are those of the signs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import pack_bits, unpack_bits


def some_weights(filters: int, high: int, wide: int, depth: int) -> np.ndarray:
    random = np.random.default_rng(filters + depth)
    return pack_bits(random.random((filters, high, wide, depth)) < 0.4)


@pytest.mark.parametrize(("high", "wide", "depth"), [(1, 1, 1), (3, 3, 48), (2, 5, 33), (1, 7, 256), (4, 1, 100)])
def test_rows_are_taps_in_order_then_zeros_up_to_whole_steps(high: int, wide: int, depth: int) -> None:
    weights = some_weights(5, high, wide, depth)
    rows = gpu_weights(weights)
    used = high * wide * weights.shape[3]
    assert rows.dtype == np.int32
    assert rows.shape[1] % 8 == 0
    assert 0 <= rows.shape[1] - used < 8
    assert np.array_equal(rows[:, :used].reshape(weights.shape), weights)
    assert not rows[:, used:].any()


def test_groups_must_divide_filters() -> None:
    with pytest.raises(ValueError, match="5 filters do not make 2 groups"):
        gpu_weights(some_weights(5, 1, 1, 32), group=2)


@pytest.mark.parametrize(("high", "wide", "depth"), [(1, 1, 33), (3, 3, 48), (2, 5, 1)])
def test_every_rectangle_of_taps_is_four_sums(high: int, wide: int, depth: int) -> None:
    weights = some_weights(3, high, wide, depth)
    sums, signs = gpu_sums(weights, depth), np.where(unpack_bits(weights, depth), -1, 1)
    assert sums.dtype == np.int32
    rows, columns = (list(itertools.combinations(range(size + 1), 2)) for size in (high, wide))
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        found = sums[:, bottom, right] - sums[:, bottom, left] - sums[:, top, right] + sums[:, top, left]
        assert np.array_equal(found, signs[:, top:bottom, left:right].sum(axis=(1, 2, 3)))
