"""Which shapes a batch runs with: rows of a bucket, a profile that holds them, and what no plan holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import OutsidePlan
from engines.runtime.buckets import Batches, buckets_up_to, profile_for
from engines.tensor import TensorSpec

X = TensorSpec("x", "FP32", (-1, 4), 0)


def ranges(*rows: tuple[int, int, int]) -> list[dict[str, tuple[tuple[int, ...], ...]]]:
    return [{"x": tuple((count, 4) for count in one)} for one in rows]


@pytest.mark.parametrize(
    ("profiles", "most_rows", "buckets"),
    [
        ([(1, 32, 32)], 32, (1, 2, 4, 8, 16, 32)),
        ([(1, 24, 24)], 24, (1, 2, 4, 8, 16, 24)),
        ([(1, 32, 32)], 1, (1,)),
        ([(1, 8, 8)], 32, (1, 2, 4, 8)),  # the plan has no more
        ([(8, 8, 8), (32, 32, 32)], 32, (8, 32)),
        ([(8, 8, 8), (32, 32, 32)], 4, (8,)),  # all rows that are asked for fit the first
        ([(1, 1, 1), (32, 32, 32)], 16, (1, 32)),
        ([(1, 1, 1), (8, 8, 8)], 64, (1, 8)),
    ],
)
def test_rows_are_rounded_up_to_what_the_plan_has(
    profiles: list[tuple[int, int, int]], most_rows: int, buckets: tuple[int, ...]
) -> None:
    made = ranges(*profiles)
    assert buckets_up_to(most_rows, made, [X]) == buckets
    batches = Batches([X], made, most_rows)
    assert [batch.bucket for batch in batches.usual()] == list(reversed(buckets)), "each has a profile"


@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True), is_single=st.booleans(),
    most_rows=st.integers(1, 80), rows=st.integers(1, 80),
)  # fmt: skip
def test_a_batch_has_the_fewest_rows_that_hold_it_or_is_not_for_the_plan(
    sizes: list[int], is_single: bool, most_rows: int, rows: int
) -> None:
    made = ranges(*([(s, s, s) for s in sorted(sizes)] if is_single else [(1, max(sizes), max(sizes))]))
    batches = Batches([X], made, most_rows)
    if rows > batches.buckets[-1]:
        assert rows > min(most_rows, max(sizes))
        with pytest.raises(OutsidePlan, match=rf"'x' \[{rows}, 4\]"):
            batches.of(((rows, 4),))
        return
    batch = batches.of(((rows, 4),))
    assert (batch.rows, batch.shapes) == (rows, ((batch.bucket, 4),))
    assert batch.bucket == min(bucket for bucket in batches.buckets if bucket >= rows)
    low, _, high = made[batch.profile]["x"]
    assert low[0] <= batch.bucket <= high[0]


def test_rows_of_many_shapes_are_not_padded_and_go_to_the_profile_that_is_fastest_near_them() -> None:
    wide = TensorSpec("x", "FP32", (-1, -1), 0)
    profiles = [{"x": ((1, 1), (8, 10), (8, 100))}, {"x": ((1, 1), (8, 80), (8, 100))}]
    batches = Batches([wide], profiles, 8)
    assert batches.usual() == []
    assert batches.of(((3, 12),)) == (0, ((3, 12),), 3, 3, False)
    assert batches.of(((3, 70),)).profile == 1
    with pytest.raises(OutsidePlan):
        batches.of(((3, 101),))


def test_a_plan_without_profiles_has_one_shape() -> None:
    fixed = TensorSpec("x", "FP32", (4, 4))
    assert profile_for(((4, 4),), [], [fixed]) == 0
    assert [batch.shapes for batch in Batches([fixed], [], 8).usual()] == [((4, 4),)]
    assert profile_for(((4, 4),), [], [X]) is None
