"""The engine's answers beside the reference's, and what the engine's guards say of them.

A guard counts what the engine computes wrongly (`engines.passes.guards`). Where one fires and the answers are right
anyway, the graph threw the wrong value away; where every sample is refused, nobody could use the model.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np

from engines import batchproof
from engines.errors import EngineFailed, ModelRefused
from engines.manifest import GUARD_OUTPUT
from engines.passes.guard_integers import UNDEFINED, WRAPS
from engines.passes.guard_stored import TAKES_WIDE
from engines.reference import Arrays
from engines.samples import Sampler, find_sampler
from engines.tensor import TensorSpec

__all__ = ["Guards", "fired", "first_difference", "is_integer"]

Run = Callable[[Arrays], Arrays]
_TIES = 0.01


def is_integer(spec: TensorSpec) -> bool:
    """True for signed and unsigned integers of any size."""
    return spec.datatype.startswith(("INT", "UINT"))


def fired(answer: Arrays) -> set[int]:
    """Which guards counted something in this run."""
    counts = answer.get(GUARD_OUTPUT)
    return set() if counts is None else {int(index) for index in np.flatnonzero(counts)}


def first_difference(run: Run, reference: Run, rows: Sequence[Arrays], bound: float, exact: Container[str] = ()) -> str:
    """What differs first, in words; nothing where the engine answers every row as the reference.

    Floats may differ by `bound` times the largest |answer|. Whole numbers must be equal in the outputs named in
    `exact`; in others, one in a hundred may flip on a tie.
    """
    return next(filter(None, (_difference(reference(row), run(row), bound, exact) for row in rows)), "")


def _difference(expected: Arrays, got: Arrays, bound: float, exact: Container[str]) -> str:
    for name, want in expected.items():
        found = batchproof.differs(want, got[name], bound)
        # behind a rounding or an argmax of floats
        tie = want.dtype.kind in "iub" and name not in exact and found.difference <= _TIES * want.size
        if found.differs and not tie:
            return (
                f"OpenVINO answers differently from ONNX Runtime: output {name!r} is off by "
                f"{found.difference:.3g}, bound {found.bound:.3g}"
            )
    return ""


class Guards:
    """The guards of one graph, in words, and those that fired although the answer was right; with `bound` and `exact`
    of `first_difference`. `allowed` is the largest bound that was made use of.
    """

    def __init__(self, said: Sequence[str], bound: float, exact: Container[str] = ()) -> None:
        self.said, self.bound, self.exact = tuple(said), bound, exact
        self.allowed = 0.0
        self.false_alarms: set[int] = set()
        self.may_be_deaf = False
        """Whether the inputs are bound to the values that were tried, so that more guards may be left out."""
        self.wrong_row: Arrays = {}
        """The sample of the last difference; nothing where samples are refused instead."""
        self.raises = False
        """Whether the engine raised on a sample: it refuses that one then, as a guard does."""

    def of_another(self, said: Sequence[str]) -> Guards:
        """What was learned here for another graph of the same model, whose guards these are."""
        quiet = {self.said[i] for i in self.false_alarms}
        other = Guards(said, self.bound, self.exact)
        other.raises = self.raises
        other.false_alarms = {i for i, text in enumerate(said) if text in quiet}
        return other

    @property
    def judged(self) -> tuple[str, ...]:
        """For the manifest: a guard that cries wolf is not listened to (an empty text)."""
        return tuple("" if i in self.false_alarms else text for i, text in enumerate(self.said))

    @property
    def notes(self) -> list[str]:
        return [f"{self.said[i]}; samples were answered right, so it is not refused" for i in sorted(self.false_alarms)]

    def first_difference(self, run: Run, reference: Run, rows: Sequence[Arrays], bound: float) -> str:
        """The same as the function, leaving out rows that the engine itself refuses; not all of them."""
        refused = 0
        self._hear_no_constant(run, reference, rows, bound)
        for row in rows:
            expected, got = reference(row), self._ran(run, row)
            if isinstance(got, EngineFailed):
                found, said = "", [str(got)]
            else:
                found, alarms = _difference(expected, got, bound, self.exact), fired(got)
                if not found:
                    self.false_alarms |= {index for index in alarms if self._may_be_false(index)}
                said = [self.said[index] for index in sorted(alarms - self.false_alarms)]
            refused += bool(said)
            if found and not said:
                self.wrong_row = row
                return found
            if refused == len(rows):
                self.wrong_row = {}
                return f"the engine refuses every sample: {said[0]}"
        return ""

    def refusal(self, run: Run, row: Arrays) -> str:
        """Why the engine refuses a sample; nothing where it does not."""
        got = self._ran(run, row)
        if isinstance(got, EngineFailed):
            return str(got)
        heard = fired(got) - self.false_alarms
        return self.said[min(heard)] if heard else ""

    def _ran(self, run: Run, row: Arrays) -> Arrays | EngineFailed:
        try:
            return run(row)
        except EngineFailed as error:
            self.raises = True
            return error

    def _hear_no_constant(self, run: Run, reference: Run, rows: Sequence[Arrays], bound: float) -> None:
        """A stored number that every sample takes, and every answer is right, does no harm to the next one either."""
        taken = {index for index, text in enumerate(self.said) if text.endswith(TAKES_WIDE)} - self.false_alarms
        for row in rows if taken else ():
            got = self._ran(run, row)
            if isinstance(got, EngineFailed):
                continue
            taken &= fired(got)
            if not taken or _difference(reference(row), got, bound, self.exact):
                return
        self.false_alarms |= taken

    def _may_be_false(self, index: int) -> bool:
        """What ONNX leaves undefined is only missed where it is used. What is defined, and wrong in the engine, may be
        used by the next request.
        """
        return self.said[index].endswith(UNDEFINED) or (self.may_be_deaf and self.said[index].endswith(WRAPS))

    def narrowed(
        self, sampler: Sampler, inputs: Sequence[TensorSpec], axes: Mapping[str, int], run: Run, reference: Run,
        limits: Sequence[int],
    ) -> tuple[Sampler, dict[str, int]]:  # fmt: skip
        """Samples of smaller whole numbers, where a guard refuses the usual ones, and the limits of the inputs that
        have to be small (a mask of zeros and ones that is multiplied by -2**63, say).
        """

        def taken(row: Arrays) -> Arrays:
            expected, got = reference(row), run(row)
            if fired(got) and _difference(expected, got, self.bound, self.exact):
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
        self.may_be_deaf = True
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
