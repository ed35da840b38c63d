"""The engine's answers beside the reference's, and what the engine's guards say of them.

A guard counts what the engine computes wrongly (`engines.passes.guards`). Where one fires and the answers are right
anyway, the graph threw the wrong value away; where every sample is refused, nobody could use the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engines import batchproof
from engines.errors import ModelRefused
from engines.manifest import GUARD_OUTPUT
from engines.reference import Arrays
from engines.samples import Sampler, find_sampler
from engines.tensor import TensorSpec

__all__ = ["SLACK", "Guards", "fired", "first_difference", "is_integer"]

Run = Callable[[Arrays], Arrays]
SLACK = 16.0
"""Fused kernels get this many times the rounding of a reordered sum."""


def is_integer(spec: TensorSpec) -> bool:
    """True for signed and unsigned integers of any size."""
    return spec.datatype.startswith(("INT", "UINT"))


def fired(answer: Arrays) -> set[int]:
    """Which guards counted something in this run."""
    counts = answer.get(GUARD_OUTPUT)
    return set() if counts is None else {int(index) for index in np.flatnonzero(counts)}


def first_difference(run: Run, reference: Run, rows: Sequence[Arrays], rounding: float) -> str:
    """What differs first, in words; nothing where the engine answers every row as the reference."""
    return next(filter(None, (_difference(reference(row), run(row), rounding) for row in rows)), "")


def _difference(expected: Arrays, got: Arrays, rounding: float) -> str:
    for name, want in expected.items():
        found = batchproof.differs(want, got[name], rounding * SLACK)
        # whole numbers behind a rounding or an argmax may flip on a tie: one in a hundred, not more
        tie = want.dtype.kind in "iub" and found.difference <= 0.01 * want.size
        if found.differs and not tie:
            return (
                f"OpenVINO answers differently from ONNX Runtime: output {name!r} is off by "
                f"{found.difference:.3g}, bound {found.bound:.3g}"
            )
    return ""


class Guards:
    """The guards of one graph, in words, and those that fired although the answer was right."""

    def __init__(self, said: Sequence[str]) -> None:
        self.said = tuple(said)
        self.false_alarms: set[int] = set()
        self.wrong_row: Arrays = {}
        """The sample of the last difference."""

    @property
    def judged(self) -> tuple[str, ...]:
        """For the manifest: a guard that cries wolf is not listened to (an empty text)."""
        return tuple("" if i in self.false_alarms else text for i, text in enumerate(self.said))

    @property
    def notes(self) -> list[str]:
        return [f"{self.said[i]}; samples were answered right, so it is not refused" for i in sorted(self.false_alarms)]

    def first_difference(self, run: Run, reference: Run, rows: Sequence[Arrays], rounding: float) -> str:
        """The same as the function, leaving out rows that the engine itself refuses; not all of them."""
        refused = 0
        for row in rows:
            expected, got = reference(row), run(row)
            found, alarms = _difference(expected, got, rounding), fired(got)
            if found:
                self.wrong_row = row
            if found and alarms:
                refused += 1
                if refused == len(rows):
                    return f"{found}: {self.said[min(alarms)]}"
                continue
            if found:
                return found
            self.false_alarms |= alarms
        return ""

    def narrowed(
        self, sampler: Sampler, inputs: Sequence[TensorSpec], axes: Mapping[str, int], run: Run, reference: Run,
        rounding: float, limits: Sequence[int],
    ) -> tuple[Sampler, dict[str, int]]:  # fmt: skip
        """Samples of smaller whole numbers, where a guard refuses the usual ones, and the limits of the inputs that
        have to be small (a mask of zeros and ones that is multiplied by -2**63, say).
        """

        def taken(row: Arrays) -> Arrays:
            expected, got = reference(row), run(row)
            if fired(got) and _difference(expected, got, rounding):
                raise ModelRefused("a guard refuses this sample")
            return expected

        if not self.said or not any(map(is_integer, inputs)):
            return sampler, {}
        try:
            smaller = find_sampler(inputs, axes, taken, [limit for limit in limits if limit <= sampler.int_limit])
        except ModelRefused:
            return sampler, {}
        if smaller.int_limit >= sampler.int_limit:
            return smaller, {}
        return smaller, {
            s.name: smaller.int_limit for s in inputs if is_integer(s) and _must_be_small(s, sampler, smaller, taken)
        }


def _must_be_small(spec: TensorSpec, usual: Sampler, smaller: Sampler, taken: Run) -> bool:
    """Whether the usual samples of this one input are refused beside small ones of the others."""
    large = Sampler(smaller.inputs, smaller.axes, smaller.size, usual.int_limit)
    try:
        for ours, theirs in zip(large.rows(), smaller.rows(), strict=True):
            taken({**theirs, spec.name: ours[spec.name]})
    except Exception:
        return True
    return False
