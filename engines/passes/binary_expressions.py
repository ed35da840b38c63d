"""What a graph computes of a binary layer's sums, element by element: sums are whole numbers, so it has few values.

Each is computed by ONNX Runtime with the graph's own nodes, in FP32 as the original computes it, and not by algebra:
what is equal to a threshold there is equal to it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engines.passes.binary_wiring import Wiring
from engines.passes.half_slots import attribute_of
from engines.reference import Reference

__all__ = [
    "Expression", "NotComputed", "Sums", "expression_of", "is_never_zero", "numbers_of", "parts_of", "root_of",
]  # fmt: skip

_ELEMENTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Clip", "Div", "Elu", "Equal", "Greater", "GreaterOrEqual", "HardSigmoid",
    "Identity", "LeakyRelu", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "PRelu", "Relu", "Sub", "Where",
})  # fmt: skip
_MOST_NODES = 64
_AT_ONCE = 2**22
"""Values, 16 MB of them."""


class NotComputed(Exception):
    """Says why the values of an expression are not known."""


class Sums(NamedTuple):
    """What a binary layer gives: d * `multiplier` + `bias`, each rounded once, FP32 [filters]; d is a sum of `terms`
    signs, so a whole number. With `has_all_terms` no sum leaves out what is padded: all d are odd, or all even.
    """

    name: str
    terms: int
    multiplier: np.ndarray
    bias: np.ndarray
    rank: int
    has_all_terms: bool

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """FP32 [numbers, filters] of whole numbers -> the same."""
        scaled: np.ndarray = numbers * self.multiplier + self.bias
        return scaled


class Expression(NamedTuple):
    """What `nodes` make of `root`, one number a channel and place, and `output` in the end. `stored` is what they read
    besides, a number or one a channel: [1, channels, 1, 1] for `rank` 4.
    """

    root: str
    output: str
    nodes: tuple[NodeProto, ...]
    stored: dict[str, np.ndarray]
    rank: int
    opset: int

    def of(self, values: np.ndarray) -> np.ndarray:
        """FP32 [numbers, channels] -> the same, or truths. Raises NotComputed."""
        if not self.nodes:
            return values
        given = values.reshape(*values.shape, *[1] * (self.rank - 2))
        try:
            found = _session(self)({self.root: given})[self.output]
        except Exception as error:  # the rest of the graph may be what makes it possible
            raise NotComputed("ONNX Runtime does not compute what follows its sums alone") from error
        answer: np.ndarray = np.broadcast_to(found, given.shape).reshape(values.shape)
        return answer


def _session(expression: Expression) -> Reference:
    shape: list[str | int | None] = ["numbers", "channels", *[1] * (expression.rank - 2)]
    root = helper.make_tensor_value_info(expression.root, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        list(expression.nodes), "expression", [root],
        [helper.make_empty_tensor_value_info(expression.output)],
        [numpy_helper.from_array(array, name) for name, array in expression.stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", expression.opset)], ir_version=10)
    return Reference(model, kept_bytes=0)


def expression_of(name: str, wiring: Wiring, channels: int, rank: int, root: str = "") -> Expression | None:
    """How a value follows from another one, or from `root`, element by element; from itself where nothing is computed.

    None where several values are in it, or constants that differ from place to place.
    """
    nodes, roots, stored = list[NodeProto](), list[str](), dict[str, np.ndarray]()
    written_out = list[np.ndarray]()
    seen = set[str]()

    def visit(value: str) -> bool:
        if value in seen or not value:
            return True
        seen.add(value)
        array = wiring.constant(value)
        if array is not None:
            small = _of_channels(array, channels, rank)
            if small is not None:
                stored[value] = small
                written_out.extend([array] if array.size > small.size else [])
            return small is not None
        node = wiring.maker.get(value)
        if value == root or node is None or not _is_elementwise(node) or len(nodes) > _MOST_NODES:
            roots.append(value)
            return len(roots) == 1
        if node.op_type == "BatchNormalization":
            arrays = {read: wiring.constant(read) for read in node.input[1:]}
            stored.update({read: array for read, array in arrays.items() if array is not None})
            done = visit(node.input[0]) and all(array is not None for array in arrays.values())
        else:
            done = all(visit(read) for read in node.input)
        nodes.append(node)
        return done

    if not visit(name) or len(roots) != 1:
        return None
    if not all(wiring.keeps_shape(roots[0], array) for array in written_out):
        return None
    return Expression(roots[0], name, tuple(nodes), stored, rank, wiring.opset)


def _is_elementwise(node: NodeProto) -> bool:
    is_known = node.op_type in _ELEMENTWISE and node.domain in ("", "ai.onnx") and len(node.output) == 1
    return is_known and not attribute_of(node, "training_mode")


def _of_channels(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """A constant that is one number, or one a channel, without the places it is written out for."""
    if array.ndim > rank or not array.size:
        return None
    if array.size == 1 and array.ndim <= 1:  # limits of a Clip have no dimensions
        return array
    whole = array.reshape((1,) * (rank - array.ndim) + array.shape)
    small = whole[:1, :, :1, :1] if rank == 4 else whole[:1]
    if whole.shape[1] not in (1, channels) or not (whole == small).all():
        return None
    return np.ascontiguousarray(small)


def root_of(name: str, wiring: Wiring) -> str:
    """Where an expression may begin, before a MaxPool as well."""
    node = wiring.maker.get(name)
    for _ in range(_MOST_NODES):
        if node is None or not (_is_elementwise(node) or node.op_type == "MaxPool"):
            break
        name = next((read for read in node.input if read and not wiring.is_constant(read)), "")
        node = wiring.maker.get(name)
    return name


def parts_of(
    name: str, wiring: Wiring, channels: int, rank: int
) -> tuple[Expression, NodeProto | None, Expression | None] | None:
    """The expression of a value; where it begins with what a MaxPool gives, also that, and the expression before it.

    None where there is none, or a pool whose windows have no bits of their own: it takes indices or sizes.
    """
    after = expression_of(name, wiring, channels, rank)
    if after is None:
        return None
    pool = wiring.maker.get(after.root)
    if pool is None or pool.op_type != "MaxPool" or rank != 4:
        return after, None, None
    if (
        len(pool.output) > 1
        or attribute_of(pool, "ceil_mode")
        or attribute_of(pool, "auto_pad") not in (None, b"NOTSET")
    ):
        return None
    before = expression_of(pool.input[0], wiring, channels, rank)
    return None if before is None else (after, pool, before)


def numbers_of(sums: int, filters: int, step: int = 1) -> Iterator[np.ndarray]:
    """All whole numbers from -`sums` to `sums` by `step`, in parts: FP32 [numbers, filters], each row one number."""
    rows = max(1, _AT_ONCE // filters)
    for start in range(-sums, sums + 1, rows * step):
        part = np.arange(start, min(start + rows * step, sums + 1), step, dtype=np.int32).astype(np.float32)
        yield np.ascontiguousarray(np.broadcast_to(part[:, None], (len(part), filters)))


def is_never_zero(name: str, sums: Sums, wiring: Wiring) -> bool:
    """Whether a value that follows from a layer's sums is 0 for none of them.

    A convolution of floats rounds its sums where its weights are no powers of two: the sign is looked at on both sides
    of what it may be off by.
    """
    parts = parts_of(name, wiring, len(sums.multiplier), sums.rank)
    if parts is None or (parts[2] or parts[0]).root != sums.name:
        return False
    try:
        return _is_never_zero(parts[0], parts[2], sums)
    except NotComputed:
        return False


def _is_never_zero(after: Expression, before: Expression | None, sums: Sums) -> bool:
    is_exact = (np.frexp(np.abs(sums.multiplier))[0] == 0.5).all()
    off = 0 if is_exact else np.abs(sums.multiplier) * sums.terms**2 * np.finfo(np.float32).eps
    for numbers in numbers_of(sums.terms, len(sums.multiplier), 2 if sums.has_all_terms else 1):
        values = sums.values(numbers)
        signs = []
        for near in (values - off, values + off):
            inner = near.astype(np.float32) if before is None else before.of(near.astype(np.float32))
            signs.append(np.sign(after.of(inner)))
        if not (signs[0] == signs[1]).all() or not (np.abs(signs[0]) == 1).all():
            return False
    return True
