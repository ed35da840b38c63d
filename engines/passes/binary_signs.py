"""Find values that are -1 and +1 alone, however an exporter has written the sign.

Algebra   s = Where(x >= t, a, -a), or with > for >=. Comparisons the other way round, Not, and exchanged branches give
          -s; Cast(x >= t) * 2 - 1 is the same with a = 1; Sign(Sign(x) + c) with 0 < |c| < 1 is x >= 0, or x > 0 for c
          below 0. Reshape, Flatten and Identity move signs without changing them; a product with a constant scales
          them; Clip to [-1, 1] or wider changes none
Pattern   the value of one of those nodes, constants stored, t the same at all places of a channel
Check     x is FP32, and no constant widens it: signs have the shape of x. ONNX's Sign gives 0 for 0, so a lone Sign is
          refused by name
Rewrite   none here: `binary_layers` packs x by its threshold
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from engines.graphs import without_weights

__all__ = ["NotBinary", "Signs", "Wiring", "signs_of"]

_COMPARISONS = {"GreaterOrEqual": (False, 1), "Less": (False, -1), "Greater": (True, 1), "LessOrEqual": (True, -1)}
"""Whether equality is on the lower side, and the sign of "true" as told of x >= t or x > t."""
_MIRRORED = {"GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual", "Greater": "Less", "Less": "Greater"}
_MOVES = frozenset({"Reshape", "Flatten", "Identity", "Dropout"})
_DEEPEST = 16
_FOLDED = frozenset({
    "Abs", "Add", "Cast", "Clip", "Div", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Mul", "Neg",
    "Not", "ReduceMean", "Reshape", "Sign", "Sub", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""What stands between stored weights and their signs and scales."""


class NotBinary(Exception):
    """A value is not known to be -1 and +1 alone; the message says why, where there was reason to think so."""


class Signs(NamedTuple):
    """`factor` where x >= `threshold` (with `strict`: x > it), else -`factor`. `source` names x.

    `threshold` has the shape that broadcasts against x. `moves` are nodes that then only move values, the first first.
    """

    source: str
    threshold: np.ndarray
    strict: bool
    factor: float
    moves: tuple[NodeProto, ...] = ()


class Wiring:
    """Who makes a value, and what is stored, or follows from that alone: exporters write signs of weights, too."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._model = model
        self.maker = {name: node for node in graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._followed: dict[str, np.ndarray | None] = {}

    def constant(self, name: str, depth: int = 0) -> np.ndarray | None:
        """None where it depends on an input."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        if name not in self._followed:
            self._followed[name] = self._follow(name, depth)
        return self._followed[name]

    def _follow(self, name: str, depth: int) -> np.ndarray | None:
        node = self.maker.get(name)
        if node is None or node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx") or depth > _DEEPEST:
            return None
        given = {read: self.constant(read, depth + 1) for read in node.input if read}
        if not given or any(array is None for array in given.values()):
            return None
        (found,) = _alone(node, given).run(None, given)
        return np.asarray(found)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every value whose rank is known; a size that is not is -1. Looked for where it matters alone."""
        bare, _ = without_weights(self._model)
        with contextlib.suppress(Exception):  # what is declared is known without inference too
            bare = shape_inference.infer_shapes(bare)
        values = [*bare.graph.value_info, *bare.graph.input, *bare.graph.output]
        return {
            value.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }

    def rank(self, name: str) -> int | None:
        """None where it is not known."""
        return len(self._shapes[name]) if name in self._shapes else None

    def keeps_shape(self, name: str, constant: np.ndarray) -> bool:
        """Whether the value keeps its shape beside this constant: it is not broadcast to a larger one."""
        if constant.size == 1 and constant.ndim <= 1:
            return True
        shape = self._shapes.get(name, ())
        own = shape[len(shape) - constant.ndim :] if constant.ndim <= len(shape) else ()
        return len(own) == constant.ndim and all(
            size in (1, mine) for size, mine in zip(constant.shape, own, strict=True)
        )

    def is_constant(self, name: str) -> bool:
        return self.constant(name) is not None

    def scalar(self, name: str) -> float | None:
        """The one number that a stored tensor has at all its places."""
        array = self.constant(name)
        if array is None or not array.size or not (array == array.flat[0]).all():
            return None
        return float(array.flat[0])


def _alone(node: NodeProto, given: Mapping[str, np.ndarray | None]) -> ReferenceEvaluator:
    """One node as a model, for ONNX's own evaluator."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items() if array is not None}
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info(node.output[0])])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def signs_of(name: str, wiring: Wiring, depth: int = 0) -> Signs:
    """What signs a value is made of. Raises NotBinary."""
    node = wiring.maker.get(name)
    if node is None or depth > _DEEPEST or node.domain not in ("", "ai.onnx"):
        raise NotBinary("")
    if node.op_type in _MOVES:
        return _moved(node, signs_of(node.input[0], wiring, depth + 1))
    rule = _RULES.get(node.op_type)
    if rule is None:
        raise NotBinary("")
    return rule(node, wiring, depth)


def _moved(node: NodeProto, signs: Signs) -> Signs:
    return signs._replace(moves=(*signs.moves, node))


def _condition(name: str, wiring: Wiring) -> Signs:
    """Signs whose +1 stands for a condition that holds."""
    node = wiring.maker.get(name)
    if node is not None and node.op_type == "Not":
        found = _condition(node.input[0], wiring)
        return found._replace(factor=-found.factor)
    if node is None or node.op_type not in _COMPARISONS:
        raise NotBinary("")
    left, right = node.input[0], node.input[1]
    operator = node.op_type
    if wiring.is_constant(left):
        left, right, operator = right, left, _MIRRORED[operator]
    threshold = wiring.constant(right)
    if threshold is None or not threshold.size or wiring.is_constant(left) or not np.isfinite(threshold).all():
        raise NotBinary("")
    if threshold.dtype != np.float32 or not wiring.keeps_shape(left, threshold):
        raise NotBinary("")
    strict, factor = _COMPARISONS[operator]
    if (threshold == threshold.flat[0]).all():  # exporters write one number out for all places
        threshold = threshold.flat[:1].reshape(())
    return Signs(left, threshold, strict, float(factor))


def _where(node: NodeProto, wiring: Wiring, _: int) -> Signs:
    yes, no = wiring.scalar(node.input[1]), wiring.scalar(node.input[2])
    if yes is None or no is None or yes != -no or yes == 0 or not np.isfinite(yes):
        raise NotBinary("")
    found = _condition(node.input[0], wiring)
    _require_shape(found, node.input[1:], wiring)
    return found._replace(factor=found.factor * yes)


def _require_shape(signs: Signs, constants: Iterable[str], wiring: Wiring) -> None:
    """Raise NotBinary where one of these constants gives the signs another shape than their source has."""
    stored = (wiring.constant(name) for name in constants)
    if not all(array is None or wiring.keeps_shape(signs.source, array) for array in stored):
        raise NotBinary("its signs are broadcast to another shape")


def _sum(node: NodeProto, wiring: Wiring, _: int) -> Signs:
    """Cast(condition) * 2a - a."""
    left, right = node.input[0], node.input[1]
    if node.op_type == "Add" and wiring.is_constant(left):
        left, right = right, left
    taken = wiring.scalar(right)
    product = wiring.maker.get(left)
    if taken is None or product is None or product.op_type != "Mul":
        raise NotBinary("")
    half = taken if node.op_type == "Sub" else -taken
    factors = {name: wiring.scalar(name) for name in product.input}
    cast = next((wiring.maker[name] for name, value in factors.items() if value is None and name in wiring.maker), None)
    if cast is None or cast.op_type != "Cast" or half == 0 or 2 * half not in factors.values():
        raise NotBinary("")
    found = _condition(cast.input[0], wiring)
    _require_shape(found, [*product.input, *node.input], wiring)
    return found._replace(factor=found.factor * half)


def _product(node: NodeProto, wiring: Wiring, depth: int) -> Signs:
    for value, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        scale = wiring.scalar(other)
        if scale is not None and not wiring.is_constant(value) and np.isfinite(scale) and scale != 0:
            found, stored = signs_of(value, wiring, depth + 1), wiring.constant(other)
            if stored is None or not wiring.keeps_shape(value, stored):
                raise NotBinary("its signs are broadcast to another shape")
            return found._replace(factor=float(np.float32(found.factor) * np.float32(scale)))
    raise NotBinary("")


def _clip(node: NodeProto, wiring: Wiring, depth: int) -> Signs:
    """What is left of a straight-through estimator."""
    limits = [wiring.scalar(name) if name else None for name in node.input[1:3]]
    if any(name and limit is None for name, limit in zip(node.input[1:3], limits, strict=True)):
        raise NotBinary("")
    found = signs_of(node.input[0], wiring, depth + 1)
    low, high = (*limits, None, None)[:2]
    if (low is not None and low > -abs(found.factor)) or (high is not None and high < abs(found.factor)):
        raise NotBinary("")
    return found


def _sign(node: NodeProto, wiring: Wiring, _: int) -> Signs:
    """Sign(Sign(x) + c): Larq's way to have no 0."""
    inner = wiring.maker.get(node.input[0])
    if inner is not None and inner.op_type == "Add":
        for value, other in ((inner.input[0], inner.input[1]), (inner.input[1], inner.input[0])):
            shift, first = wiring.scalar(other), wiring.maker.get(value)
            if shift is not None and 0 < abs(shift) < 1 and first is not None and first.op_type == "Sign":
                stored = wiring.constant(other)
                if stored is None or stored.dtype != np.float32 or not wiring.keeps_shape(first.input[0], stored):
                    raise NotBinary("")
                return Signs(first.input[0], np.zeros((), np.float32), shift < 0, 1.0)
    raise NotBinary(f"Sign {node.name!r} answers 0 for 0, and nothing shows that its input is never 0")


_RULES = {"Where": _where, "Sub": _sum, "Add": _sum, "Mul": _product, "Clip": _clip, "Sign": _sign}
