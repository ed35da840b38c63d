"""Find values that are -1 and +1 alone (or 0 and 1), however an exporter has written the sign.

Algebra   what is made of a comparison of x with t, or of Sign(x) with t = 0, element by element and of constants alone,
          has three values: one below t, one at t, one above. Those are computed, by the very operators. The one form of
          them all is s = f where x >= t (`strict`: x > t), and -f elsewhere, or 0 elsewhere (`low`)
Pattern   comparisons, Sign, and behind them Where, Cast, Not, arithmetic with stored numbers or with what fills the
          shape of x (ones_like), sums of several such values of one x and t. Reshape, Flatten and Transpose move signs
          without changing them, MaxPool moves the largest. (s - c) + c with c = Clip(x, -1, 1), what is left of a
          straight-through estimator, is s exactly: 1 - c is rounded by less than what the last sum rounds away
Check     x is FP32, and no constant widens it: signs have the shape of x. Sign answers 0 for 0: where x is never
          negative its values are 0 and 1, else three (`ternary`), unless `binary_layers` can prove that x is never 0
Rewrite   none here: `binary_layers` packs x by its threshold
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from onnx import NodeProto

from engines.passes.binary_wiring import Wiring

__all__ = ["NotBinary", "Signs", "signs_of"]

_COMPARISONS = {
    "GreaterOrEqual": (False, True, True), "Greater": (False, False, True), "Less": (True, False, False),
    "LessOrEqual": (True, True, False), "Equal": (False, True, False),
}  # fmt: skip
"""What they say below the right operand, at it, above it."""
_MIRRORED = {
    "GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual", "Greater": "Less", "Less": "Greater",
    "Equal": "Equal",
}  # fmt: skip
_MAPS = frozenset({
    *_COMPARISONS, "Abs", "Add", "And", "Cast", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Neg", "Not", "Or",
    "Relu", "Sign", "Sub", "Where", "Xor",
})  # fmt: skip
"""They make one value of three of three others."""
_MOVES = frozenset({"Reshape", "Flatten", "Dropout", "Transpose", "Squeeze", "Unsqueeze"})
_DEEPEST = 16
_WIDENED = "its signs are broadcast to another shape"


class NotBinary(Exception):
    """A value is not known to be -1 and +1 alone; the message says why, where there was reason to think so."""


class Signs(NamedTuple):
    """`factor` where x >= `threshold` (with `strict`: x > it), else -`factor`, or 0 with `low` = 0. `source` names x.

    With `ternary` it is 0 where x is equal to the threshold. `threshold` has the shape that broadcasts against x.
    `moves` are nodes that then only move values, the first first.
    """

    source: str
    threshold: np.ndarray
    strict: bool
    factor: float
    moves: tuple[NodeProto, ...] = ()
    low: Literal[-1, 0] = -1
    ternary: bool = False


class _Levels(NamedTuple):
    """`values` has one number, or truth, below the threshold, one at it, one above."""

    source: str
    threshold: np.ndarray
    values: np.ndarray
    moves: tuple[NodeProto, ...] = ()

    def is_of_the_same(self, other: _Levels) -> bool:
        return (
            self.source == other.source
            and self.moves == other.moves
            and self.threshold.shape == other.threshold.shape
            and bool((self.threshold == other.threshold).all())
        )


def signs_of(name: str, wiring: Wiring, moves: tuple[NodeProto, ...] = ()) -> Signs:
    """What signs a value is made of that is moved by these nodes further on. Raises NotBinary."""
    found = _levels(name, wiring)
    return _form(found._replace(moves=(*found.moves, *moves)), wiring)


def _form(found: _Levels, wiring: Wiring) -> Signs:
    below, equal, above = (float(value) for value in found.values)
    if found.values.dtype != np.float32 or not np.isfinite(found.values).all():
        raise NotBinary("")
    source, threshold, moves = _without_round_trip(found, wiring)
    lows: tuple[Literal[-1, 0], ...] = (-1, 0)
    has_below = bool((found.threshold != 0).any()) or not wiring.is_never_negative(found.source)
    for least in (below,) if has_below else (below, equal):
        for low in lows:
            if above != 0 and least == low * above and equal in (least, above):
                return Signs(source, threshold, equal == least, above, moves, low)
    if above != 0 and below == -above and equal == 0:
        return Signs(source, threshold, False, above, moves, ternary=True)
    if below == above == equal:
        raise NotBinary("")
    raise NotBinary(f"its values are {below:g}, {equal:g} and {above:g} below, at and above a threshold")


def _without_round_trip(found: _Levels, wiring: Wiring) -> tuple[str, np.ndarray, tuple[NodeProto, ...]]:
    """Source, threshold and moves; two Transpose, of what is compared and of its signs, may undo each other."""
    first, second = wiring.maker.get(found.source), found.moves[0] if found.moves else None
    if first is None or second is None or {first.op_type, second.op_type} != {"Transpose"}:
        return found.source, found.threshold, found.moves
    there, back = (list(node.attribute[0].ints) if node.attribute else [] for node in (first, second))
    if not there or [there[axis] for axis in back] != list(range(len(there))):
        return found.source, found.threshold, found.moves
    threshold = found.threshold
    if threshold.ndim:
        threshold = threshold.reshape((1,) * (len(back) - threshold.ndim) + threshold.shape).transpose(back)
    return first.input[0], threshold, found.moves[1:]


def _levels(name: str, wiring: Wiring, depth: int = 0) -> _Levels:
    """Remembered, failures with how deep they were: something may be in reach from nearer."""
    found, at = wiring.levels.get(name, (None, depth + 1))
    if found is None or (isinstance(found, NotBinary) and at > depth):
        try:
            found = _look(name, wiring, depth)
        except NotBinary as reason:
            found = reason
        wiring.levels[name] = found, depth
    if isinstance(found, NotBinary):
        raise NotBinary(str(found))
    assert isinstance(found, _Levels)
    return found


def _look(name: str, wiring: Wiring, depth: int) -> _Levels:
    node = wiring.maker.get(name)
    if node is None or depth > _DEEPEST or node.domain not in ("", "ai.onnx"):
        raise NotBinary("")
    if node.op_type in _MOVES:
        found = _levels(node.input[0], wiring, depth + 1)
        return found._replace(moves=(*found.moves, node))
    if node.op_type == "MaxPool":
        return _pooled(node, _levels(node.input[0], wiring, depth + 1))
    if node.op_type not in _MAPS or wiring.is_constant(name):
        raise NotBinary("")
    if node.op_type == "Add":
        left = _estimator(node, wiring, depth)
        if left is not None:
            return left
    parts = {read: _levels_or_none(read, wiring, depth + 1) for read in node.input if read}
    if any(parts.values()):
        return _mapped(node, {name: part for name, part in parts.items() if part is not None}, wiring)
    if node.op_type in _COMPARISONS:
        return _comparison(node, wiring)
    if node.op_type == "Sign" and wiring.is_float(node.input[0]):
        return _Levels(node.input[0], np.zeros((), np.float32), np.array([-1, 0, 1], np.float32))
    raise NotBinary("")


def _pooled(node: NodeProto, found: _Levels) -> _Levels:
    """The largest of some signs is the sign of the largest x, where signs rise with it."""
    if len(node.output) > 1 or (np.diff(found.values.astype(np.float32)) < 0).any():
        raise NotBinary("its signs are pooled, and fall where what is compared rises")
    return found._replace(moves=(*found.moves, node))


def _levels_or_none(name: str, wiring: Wiring, depth: int) -> _Levels | None:
    try:
        return _levels(name, wiring, depth)
    except NotBinary as reason:
        if str(reason):
            raise
        return None


def _comparison(node: NodeProto, wiring: Wiring) -> _Levels:
    left, right = node.input[0], node.input[1]
    operator = node.op_type
    if wiring.is_constant(left) or wiring.filled(left, right) is not None:
        left, right, operator = right, left, _MIRRORED[operator]
    threshold = wiring.constant(right)
    if threshold is None:
        threshold = wiring.filled(right, left)
    if threshold is None or not threshold.size or wiring.is_constant(left) or not np.isfinite(threshold).all():
        raise NotBinary("")
    if threshold.dtype != np.float32 or not wiring.keeps_shape(left, threshold):
        raise NotBinary("")
    if (threshold == threshold.flat[0]).all():  # exporters write one number out for all places
        threshold = threshold.flat[:1].reshape(())
    return _Levels(left, threshold, np.array(_COMPARISONS[operator]))


def _mapped(node: NodeProto, parts: dict[str, _Levels], wiring: Wiring) -> _Levels:
    """What a node makes of the three values, with constants that are one number each."""
    name, first = next(iter(parts.items()))
    given = {}
    for read in filter(None, node.input):
        if read in parts:
            if not parts[read].is_of_the_same(first):
                raise NotBinary("")
            given[read] = parts[read].values
            continue
        constant = wiring.constant(read)
        number = wiring.filled(read, first.source) if constant is None else constant
        if number is None or not number.size or not (number == number.flat[0]).all():
            raise NotBinary("")
        if constant is not None and not (wiring.keeps_shape(name, number) or wiring.keeps_shape(first.source, number)):
            raise NotBinary(_WIDENED)
        given[read] = number.flat[:1].reshape(())
    values = wiring.evaluated(node, given)
    if values is None or values.shape != (3,):
        raise NotBinary("")
    return first._replace(values=values)


def _estimator(node: NodeProto, wiring: Wiring, depth: int) -> _Levels | None:
    """(s - c) + c: what is left of a straight-through estimator. None where it is something else."""
    for rest, soft in (node.input, node.input[::-1]):
        difference = wiring.maker.get(rest)
        if difference is None or difference.op_type != "Sub" or difference.input[1] != soft:
            continue
        found = _levels_or_none(difference.input[0], wiring, depth + 1)
        if found is None or wiring.is_constant(soft):
            continue
        clip = wiring.maker.get(soft)
        if clip is not None and clip.op_type == "Clip" and _stays_within(clip, found, wiring):
            return found
        raise NotBinary("what its estimator has left, (sign - c) + c, is rounded to other values than its signs")
    return None


def _stays_within(clip: NodeProto, signs: _Levels, wiring: Wiring) -> bool:
    """Whether it has the signs' own sign and at most their size: they are -1 and +1 of the same value, at 0."""
    limits = [wiring.scalar(name) if name else None for name in clip.input[1:3]]
    if len(limits) < 2 or limits[0] is None or limits[1] is None or not -1 <= limits[0] <= 0 <= limits[1] <= 1:
        return False
    below, equal, above = signs.values.tolist()
    is_sign = (below, above) == (-1, 1) and equal in (-1, 0, 1)
    return is_sign and clip.input[0] == signs.source and not signs.moves and not signs.threshold.any()
