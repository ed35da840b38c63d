"""Which shapes a batch runs with on a GPU: its rows rounded up to a few numbers, one of the plan's profiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engines.errors import OutsidePlan
from engines.tensor import DYNAMIC, ShapeRange, TensorSpec

__all__ = ["Batch", "Batches", "Profile", "Shapes", "bucket_of", "buckets_up_to", "profile_for", "with_rows"]

Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs, in the model's order."""
Profile = Mapping[str, ShapeRange]
"""Of every input with variable dimensions; the others have one shape."""


class Batch(NamedTuple):
    """A batch as it runs: `shapes` of all inputs have the rows of its bucket, `rows` are those that were asked for (0
    where there is no batch axis). `profile` is a number. `is_usual`: it is one of few, and worth a graph.
    """

    profile: int
    shapes: Shapes
    rows: int
    bucket: int
    is_usual: bool


class Batches:
    """How the batches of one plan run. What was found for shapes is kept: they come again."""

    _most_kept = 1024

    def __init__(
        self, inputs: Sequence[TensorSpec], profiles: Sequence[Profile], most_rows: int, first_profile: int = 0
    ) -> None:
        """`profiles` are those to choose from, whose numbers in the plan begin with `first_profile`."""
        self._inputs, self._profiles = tuple(inputs), tuple(profiles)
        self.numbers = range(first_profile, first_profile + max(1, len(self._profiles)))
        self._axis = next(((at, s.batch_axis) for at, s in enumerate(inputs) if s.batch_axis is not None), None)
        self.buckets = buckets_up_to(most_rows, profiles, inputs) if self._axis else (0,)
        self.is_fixed = all(DYNAMIC not in spec.row_shape for spec in inputs)
        """Whether rows have one shape: only then may a batch have rows that nobody fills. They hold what earlier ones
        left, and that was a row of the model."""
        self.most_rows = self.buckets[-1]
        """Of a batch that a profile holds, 0 without a batch axis."""
        self._known: dict[Shapes, Batch] = {}

    def of(self, shapes: Shapes) -> Batch:
        """Raises OutsidePlan where no profile of the plan holds them."""
        known = self._known.get(shapes)
        if known is None:
            if len(self._known) >= self._most_kept:
                self._known.clear()
            known = self._known[shapes] = self._found(shapes)
        return known

    def usual(self) -> list[Batch]:
        """Those with graphs, the largest first: it needs the most memory."""
        if not self.is_fixed:
            return []
        row = tuple(spec.shape for spec in self._inputs)
        return [self.of(with_rows(row, self._inputs, bucket)) for bucket in reversed(self.buckets)]

    def _found(self, shapes: Shapes) -> Batch:
        rows = shapes[self._axis[0]][self._axis[1]] if self._axis else 0
        bucket = bucket_of(rows, self.buckets) if self.is_fixed else rows
        padded = shapes if bucket is None else with_rows(shapes, self._inputs, bucket)
        profile = None if bucket is None else profile_for(padded, self._profiles, self._inputs)
        if profile is None or bucket is None:
            said = ", ".join(f"{spec.name!r} {list(shape)}" for spec, shape in zip(self._inputs, shapes, strict=True))
            raise OutsidePlan(f"the plan for the GPU was built for other sizes than {said}")
        return Batch(self.numbers[profile], padded, rows, bucket, self.is_fixed)


def buckets_up_to(most_rows: int, profiles: Sequence[Profile], inputs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Numbers of rows that batches are rounded up to, ascending: those that have a profile of their own, as far as
    `most_rows` needs them; else powers of two and the most that the plan has, and rows are computed in vain for at most
    as many that were asked for.
    """
    axis = next(((spec.name, spec.batch_axis) for spec in inputs if spec.batch_axis is not None), None)
    if axis is None:
        return (1,)
    name, at = axis
    ranges = [profile[name] for profile in profiles if name in profile]
    fixed = sorted({low[at] for low, _, high in ranges if low[at] == high[at]})
    if fixed:
        needed = bucket_of(most_rows, fixed) or fixed[-1]
        return tuple(rows for rows in fixed if rows <= needed)
    most_rows = min(most_rows, max((high[at] for _, _, high in ranges), default=most_rows))
    powers = [2**power for power in range(max(1, most_rows).bit_length()) if 2**power < most_rows]
    return (*powers, most_rows)


def bucket_of(rows: int, buckets: Sequence[int]) -> int | None:
    """The fewest rows of a bucket that these fit in; None where there is none."""
    return next((bucket for bucket in buckets if bucket >= rows), None)


def profile_for(shapes: Shapes, profiles: Sequence[Profile], inputs: Sequence[TensorSpec]) -> int | None:
    """The profile that holds these shapes, the one that is fastest nearest to them; None where none does.

    A plan without profiles has one, for the only shapes that there are.
    """
    if not profiles:
        return 0 if all(DYNAMIC not in spec.shape for spec in inputs) else None
    named = {spec.name: shape for spec, shape in zip(inputs, shapes, strict=True)}
    fitting = [at for at, profile in enumerate(profiles) if all(_holds(profile, name, s) for name, s in named.items())]
    return min(fitting, key=lambda at: _distance(profiles[at], named), default=None)


def _holds(profile: Profile, name: str, shape: tuple[int, ...]) -> bool:
    if name not in profile:
        return True
    low, _, high = profile[name]
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _distance(profile: Profile, named: Mapping[str, tuple[int, ...]]) -> float:
    """How far its best sizes are away, as the sum of |log| of their ratios."""
    pairs = (
        (size, best) for name, (_, bests, _) in profile.items() for size, best in zip(named[name], bests, strict=True)
    )
    return sum(abs(math.log(max(1, size) / max(1, best))) for size, best in pairs)


def with_rows(shapes: Shapes, inputs: Sequence[TensorSpec], rows: int) -> Shapes:
    """The same with another number of rows."""
    return tuple(
        shape if spec.batch_axis is None else (*shape[: spec.batch_axis], rows, *shape[spec.batch_axis + 1 :])
        for spec, shape in zip(inputs, shapes, strict=True)
    )
