"""Prove that rows do not touch each other along a batch axis, by running the engine. Dimension names prove nothing.

Every sample is run alone, then together with others, permuted, beside rows of large values, NaN and infinities,
and each row is compared with what it was alone. A row that answers differently in company depends on its company.
Between two companies of one size the engine runs the very same sums for a row, so there the row must not change by a
single bit: that shows a mixing which is too weak for any tolerance.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from engines.manifest import BatchProof
from engines.reference import Arrays
from engines.tensor import DYNAMIC, TensorSpec, datatype

__all__ = [
    "FULL_BATCH_ROWS",
    "Blind",
    "Difference",
    "Proven",
    "Refuted",
    "axis_candidates",
    "differs",
    "join",
    "prove",
    "prove_again",
]

Run = Callable[[Arrays], Arrays]
_LARGE = 1e4
_EXTREMES = (-100.0, 100.0)
_MAX_CANDIDATES = 8
FULL_BATCH_ROWS = 32
_OTHER_SIZES = (4, 7, 16)
_LARGER_SIZES = (33, 64, 256)
"""Rows; an engine may change its algorithm with the size of a batch, and users may ask for more than a full one."""
_CHEAP_S = 1.0
_CHEAP_BYTES = 2**28


@dataclass(frozen=True)
class Proven:
    """Rows are independent; `output_axes` is the axis along which each output carries them."""

    proof: BatchProof
    output_axes: dict[str, int]


@dataclass(frozen=True)
class Refuted:
    """Rows touch each other, or an output does not carry them."""

    reason: str


@dataclass(frozen=True)
class Blind:
    """The samples answered alike, so nothing could be seen."""

    reason: str


def axis_candidates(inputs: Sequence[TensorSpec]) -> list[dict[str, int]]:
    """Assignments of a batch axis to every input worth trying, the first dimension of all of them first.

    An axis is eligible where its size is variable or 1. The protocol counts rows in the first dimension, so at least
    one input must carry them there; others may carry them elsewhere, as recurrent states do ([layers, batch, width]).
    """
    eligible = [[i for i, d in enumerate(spec.shape) if d in (DYNAMIC, 1)] for spec in inputs]
    assignments = itertools.islice(itertools.product(*eligible), 64)
    named = [dict(zip((s.name for s in inputs), axes, strict=True)) for axes in assignments if 0 in axes]
    return sorted(named, key=lambda axes: sum(axes.values()))[:_MAX_CANDIDATES]


def prove(run: Run, rows: Sequence[Arrays], axes: Mapping[str, int], rounding: float) -> Proven | Refuted | Blind:
    """Run the checks in order of cost; the first that fails decides.

    `rows` are single-row inputs. `rounding` is the model's relative rounding error (`engines.verify.rounding_bound`):
    float rows may differ by it times the largest |answer|, since another batch size may sum in another order;
    integers and booleans must be equal.
    """
    return _judged(lambda: _Proof(run, rows, axes, rounding).result())


def prove_again(
    run: Run, rows: Sequence[Arrays], axes: Mapping[str, int], rounding: float, proven: Proven, where: str
) -> Proven | Refuted | Blind:
    """The checks that show most, for four rows of another shape than those of `proven`; `where` says which."""
    found = _judged(lambda: _Proof(run, rows, axes, rounding).brief_result())
    if not isinstance(found, Proven):
        return type(found)(f"{where}: {found.reason}")
    if found.output_axes != proven.output_axes:
        return Refuted(f"{where}: outputs carry rows along axes {found.output_axes}, else {proven.output_axes}")
    a, b = proven.proof, found.proof
    checks = (*a.checks, f"{where}: {', '.join(b.checks)}")
    worst, bound = max(a.worst_difference, b.worst_difference), max(a.bound, b.bound)
    combined = msgspec.structs.replace(a, checks=checks, worst_difference=worst, bound=bound)
    return Proven(combined, proven.output_axes)


def _judged(prove: Callable[[], Proven]) -> Proven | Refuted | Blind:
    try:
        return prove()
    except _Stop as stop:
        return stop.verdict
    except Exception as error:  # an engine that cannot run a batch has refuted it
        return Refuted(f"a batch could not be run: {_last_line(error)}")


class _Stop(Exception):
    def __init__(self, verdict: Refuted | Blind) -> None:
        self.verdict = verdict


class _Proof:
    def __init__(self, run: Run, rows: Sequence[Arrays], axes: Mapping[str, int], rounding: float) -> None:
        self._run, self._rows, self._axes, self._rounding = run, rows, axes, rounding
        self._alone = [run(row) for row in rows]
        self._worst = self._bound = 0.0
        self._checks: list[str] = []
        self._last_run_s = self._full_batch_s = 0.0
        self._largest = 1

    def result(self) -> Proven:
        count = len(self._rows)
        order = list(range(count))
        self._output_axes = self._find_output_axes()
        self._check("together", [order])
        self._require_sight()
        self._check("permuted", [order[::-1], order[2:] + order[:2]])
        self._check("in smaller company", [order[:3], order[1:3]])
        guests = {
            "another row": self._rows[3:],
            "a row of large values": [_spoilt(self._rows[1], _large)],
            # masks and flags switch on values that a random row never has
            "a row of one value": [_spoilt(self._rows[1], _filled(value)) for value in (0, 1, -1)],
            "a row with a zero in it": [_spoilt(self._rows[1], _with_zero)],
        }
        if any(is_float(array) for array in self._rows[0].values()):
            guests["a row of NaN"] = [_spoilt(self._rows[1], _all(np.nan))]
            # a maximum may pass over NaN, and hide a weak mixing behind any finite number
            guests["a row of infinities"] = [_spoilt(self._rows[1], _all(sign * np.inf)) for sign in (1, -1)]
        self._check_beside(guests)
        self._check_extreme_rows()
        # shuffled: an order with a period would hide rows that meet rows a period away
        rng = np.random.default_rng(0)
        self._check("in other sizes", [list(rng.integers(0, count, size)) for size in _OTHER_SIZES])
        self._check("in a full batch", [list(rng.integers(0, count, FULL_BATCH_ROWS))])
        self._full_batch_s = self._last_run_s
        self._check_larger()
        return self._proven()

    def brief_result(self) -> Proven:
        self._output_axes = self._find_output_axes()
        self._check("together", [list(range(len(self._rows)))])
        self._require_sight()
        guests = {
            "another row": self._rows[3:],
            "a row of large values": [_spoilt(self._rows[1], _large)],
            "a row with a zero in it": [_spoilt(self._rows[1], _with_zero)],
        }
        if any(is_float(array) for array in self._rows[0].values()):
            guests["a row of NaN"] = [_spoilt(self._rows[1], _all(np.nan))]
        self._check_beside(guests, positions=(1,))
        return self._proven()

    def _proven(self) -> Proven:
        proof = BatchProof(
            True, "", tuple(self._checks), self._worst, self._bound, self._largest, self._full_batch_s
        )  # fmt: skip
        return Proven(proof, self._output_axes)

    def _find_output_axes(self) -> dict[str, int]:
        """The one axis of each output whose size is the number of rows, at two different numbers."""
        two, three = self._answer([0, 1]), self._answer([0, 1, 2])
        axes: dict[str, int] = {}
        for name, alone in self._alone[0].items():
            shapes = (alone.shape, two[name].shape, three[name].shape)
            grown = [
                axis
                for axis in range(alone.ndim)
                if len({len(s) for s in shapes}) == 1 and [s[axis] for s in shapes] == [1, 2, 3]
            ]
            rest = [tuple(d for i, d in enumerate(s) if i not in grown) for s in shapes]
            if len(grown) != 1 or len(set(rest)) != 1:
                sizes = ", ".join(str(list(s)) for s in shapes)
                raise _Stop(Refuted(f"output {name!r} does not carry the batch axis: 1, 2 and 3 rows gave {sizes}"))
            axes[name] = grown[0]
        return axes

    def _require_rows(self, answer: Arrays, rows: int) -> None:
        for name, axis in self._output_axes.items():
            want = tuple(rows if i == axis else d for i, d in enumerate(self._alone[0][name].shape))
            if answer[name].shape != want:
                raise _Stop(
                    Refuted(f"output {name!r} of {rows} rows has shape {list(answer[name].shape)}, not {list(want)}")
                )

    def _require_sight(self) -> None:
        """Each output must differ between samples by more than the bound, or swapped rows would go unseen."""
        for name in self._alone[0]:
            answers = [alone[name] for alone in self._alone]
            if all(not differs(answers[0], other, self._rounding).differs for other in answers[1:]):
                raise _Stop(Blind(f"output {name!r} is the same for every sample, so independence cannot be seen"))

    def _answer(self, order: Sequence[int]) -> Arrays:
        batch = join([self._rows[i] for i in order], self._axes)
        started = time.perf_counter()
        answer = self._run(batch)
        self._last_run_s = time.perf_counter() - started
        return answer

    def _check_larger(self) -> None:
        """Beyond a full batch, which was run last, as long as the next size promises to take little time and memory."""
        rng, rows = np.random.default_rng(1), FULL_BATCH_ROWS
        row_bytes = sum(array.nbytes for arrays in (self._rows[0], self._alone[0]) for array in arrays.values())
        for size in _LARGER_SIZES:
            if self._last_run_s / rows * size > _CHEAP_S or row_bytes * size > _CHEAP_BYTES:
                self._checks.append(f"not run beyond {rows} rows: {size} would take over 1 s or 256 MiB")
                return
            self._check(f"in a batch of {size}", [list(rng.integers(0, len(self._rows), size))])
            rows = size

    def _check(self, what: str, orders: Sequence[Sequence[int]]) -> None:
        for order in orders:
            answer = self._answer(order)
            self._require_rows(answer, len(order))
            for position, index in enumerate(order):
                self._compare(what, answer, position, self._alone[index])
            self._largest = max(self._largest, len(order))
        self._checks.append(what)

    def _check_extreme_rows(self) -> None:
        """Rows that are low, or high, in every element: a maximum over rows hides them from all other companies."""
        if not any(is_float(array) for array in self._rows[0].values()):
            return
        for value in _EXTREMES:
            row = _spoilt(self._rows[1], _all(value))
            alone, company = self._run(row), self._run(join([self._rows[0], row, self._rows[2]], self._axes))
            self._require_rows(company, 3)
            self._compare("as an extreme row beside others", company, 1, alone)
        self._checks.append("extreme rows beside others")

    def _check_beside(self, guests: Mapping[str, Sequence[Arrays]], positions: Sequence[int] = (1, 0)) -> None:
        """Two rows beside a third that changes: they must answer as alone, and in all companies to the same bit."""
        for position in positions:
            hosts = [p for p in range(3) if p != position]
            usual, again = (self._beside(self._rows[1], position) for _ in range(2))
            repeats = all(_same_bits(usual[name], again[name]) for name in usual)
            for what, rows in guests.items():
                for guest in rows:
                    answer = self._beside(guest, position)
                    for index, row in zip((0, 2), hosts, strict=True):
                        self._compare(f"beside {what}", answer, row, self._alone[index])
                        if repeats:
                            self._require_same(f"beside {what}", usual, answer, row)
        self._checks.extend(f"beside {what}" for what in guests)

    def _beside(self, guest: Arrays, position: int) -> Arrays:
        company = [self._rows[0], self._rows[2]]
        company.insert(position, guest)
        return self._run(join(company, self._axes))

    def _require_same(self, what: str, usual: Arrays, answer: Arrays, position: int) -> None:
        for name, axis in self._output_axes.items():
            want, got = (np.take(answers[name], [position], axis=axis) for answers in (usual, answer))
            if not _same_bits(want, got):
                raise _Stop(
                    Refuted(
                        f"rows touch each other ({what}): output {name!r} of a row changes with the rows beside it, "
                        "in a batch of the same size"
                    )
                )

    def _compare(self, what: str, answer: Arrays, position: int, alone: Arrays) -> None:
        for name, want in alone.items():
            got = np.take(answer[name], [position], axis=self._output_axes[name])
            found = differs(want, got, self._rounding)
            self._worst, self._bound = max(self._worst, found.difference), max(self._bound, found.bound)
            if found.differs:
                raise _Stop(
                    Refuted(
                        f"rows touch each other ({what}): output {name!r} differs from the same row run alone by "
                        f"{found.difference:.3g}, bound {found.bound:.3g}"
                    )
                )


class Difference(NamedTuple):
    """Whether two answers differ, the largest |difference|, and the bound it was held against."""

    differs: bool
    difference: float
    bound: float


def differs(want: np.ndarray, got: np.ndarray, rounding: float) -> Difference:
    """Compare two answers of one shape: floats within `rounding` times max |want|, all else exactly.

    NaN and infinities must stand in the same places.
    """
    if want.shape != got.shape:
        return Difference(True, float("inf"), 0.0)
    if not is_float(want):
        unequal = int(np.count_nonzero(want != got))
        return Difference(unequal > 0, float(unequal), 0.0)
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    strange = not np.array_equal(a[~finite], b[~finite], equal_nan=True)
    if not finite.any():
        return Difference(strange, 0.0, 0.0)
    bound = rounding * max(float(np.abs(a[finite]).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(a[finite] - b[finite]).max())
    return Difference(strange or not difference <= bound, difference, bound)


def is_float(array: np.ndarray) -> bool:
    """True for the floating-point types of the protocol, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype == datatype("BF16").numpy


def join(rows: Sequence[Arrays], axes: Mapping[str, int]) -> Arrays:
    """One batch of several rows."""
    return {name: np.concatenate([row[name] for row in rows], axis=axes[name]) for name in rows[0]}


def _same_bits(want: np.ndarray, got: np.ndarray) -> bool:
    return want.shape == got.shape and want.tobytes() == got.tobytes()


def _spoilt(row: Arrays, spoil: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return {name: spoil(array) for name, array in row.items()}


def _large(array: np.ndarray) -> np.ndarray:
    if is_float(array):
        limit = 3e4 if array.dtype.itemsize == 2 else np.inf
        return np.clip(array.astype(np.float64) * _LARGE, -limit, limit).astype(array.dtype)
    return np.full_like(array, array.max())


def _filled(value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Every element `value`, whatever the datatype; unsigned ones stay as they are for a negative value."""
    return lambda array: array if value < 0 and array.dtype.kind in "ub" else np.full_like(array, value)


def _with_zero(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[:1] = 0
    return changed


def _all(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.full_like(array, value) if is_float(array) else array


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
