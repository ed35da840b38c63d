"""Compute what follows a binary layer's sums with them: factors, biases, batch norm, ReLU and PReLU with shifts.

Algebra   v = d m + c; y = v > shift ? (v - shift) + offset : (v - shift) slope + offset, so
          y * s  is the same of m s, c s, shift s, offset s (for s > 0 where there is an activation, for any s else)
          y + b  is the same of offset + b, or of c + b where there is no activation
          BN(y) = y * s + b  with  s = gamma / sqrt(var + epsilon), b = beta - mean s, as ONNX Runtime has them
          ReLU, LeakyReLU and PReLU of y with no activation have shift 0, offset 0 and their slope
Pattern   one of those nodes over the output of BinaryConv2d or BinaryGemm
Check     nobody else reads the sums; constants are stored, one number or one a channel; what the layer gives afterwards
          is within 1e-5 of what the node gave, at every whole number, and bits that are packed of it are the same
Rewrite   the layer with other factors, biases and activation, under its own name
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx import NodeProto
from onnxscript.rewriter import MatchResult

from engines.passes.binary_expressions import NotComputed, expression_of, numbers_of
from engines.passes.binary_rules import BinaryRule, Layers
from engines.passes.half_slots import attribute_of
from engines.plugins.ops import DOMAIN
from engines.plugins.reference import finished

__all__ = ["epilogue_rules"]

_KINDS = {"BinaryConv2d": 4, "BinaryGemm": 2}
"""Dimensions of what they give."""
_NODES = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Relu", "LeakyRelu", "PRelu")
_TOLERANCE = 1e-5
_EPSILON = 1e-5


class _Epilogue(NamedTuple):
    """FP32 [filters], each of them."""

    multiplier: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    slope: np.ndarray
    offset: np.ndarray

    @property
    def is_plain(self) -> bool:
        return not self.shift.any() and not self.offset.any() and bool((self.slope == 1).all())

    def scaled(self, factor: np.ndarray) -> _Epilogue | None:
        if not self.is_plain and not (factor > 0).all():
            return None
        return self._replace(
            multiplier=self.multiplier * factor, bias=self.bias * factor, shift=self.shift * factor,
            offset=self.offset * factor,
        )  # fmt: skip

    def added(self, number: np.ndarray) -> _Epilogue:
        if self.is_plain:
            return self._replace(bias=self.bias + number)
        return self._replace(offset=self.offset + number)

    def bent(self, slope: np.ndarray) -> _Epilogue | None:
        return self._replace(slope=slope) if self.is_plain else None

    def of(self, numbers: np.ndarray) -> np.ndarray:
        return finished(numbers, self.multiplier, self.bias, np.stack(self[2:]))


def epilogue_rules(layers: Layers, left: dict[str, str]) -> list[Any]:
    """One for each node, layer, and place of the constant."""
    return [
        EpilogueRule.rule(layers, left, layer, node, swapped)  # type: ignore[no-untyped-call]
        for layer in _KINDS
        for node in _NODES
        for swapped in ((False, True) if node in ("Add", "Mul") else (False,))
    ]


class EpilogueRule(BinaryRule):
    """One node behind a layer."""

    def __init__(self, layers: Layers, left: dict[str, str], kind: str, node: str, swapped: bool) -> None:
        super().__init__(layers, left, name=f"{node} into {kind}")
        self._kind, self._node, self._swapped = kind, node, swapped
        self._found: dict[str, _Epilogue] = {}

    def pattern(self, op: Any, bits: ir.Value, other: ir.Value) -> Any:
        sums = getattr(op, self._kind)(bits, _allow_other_inputs=True, _domain=DOMAIN, _outputs=["sums"])
        node = getattr(op, self._node)
        if self._swapped:
            return node(other, sums, _outputs=["y"])
        return node(sums, _allow_other_inputs=True, _outputs=["y"])

    def check(
        self, context: Any, bits: ir.Value, sums: ir.Value, y: ir.Value, other: ir.Value | None = None
    ) -> MatchResult:
        layer, node = sums.producer(), self.layers.wiring.maker.get(str(y.name))
        if layer is None or node is None:
            return self.refuse(None, "")
        own = _epilogue_of(layer)
        made = _with(own, node, str(sums.name), self.layers, _KINDS[self._kind])
        if made == "":
            return self.refuse(None, "")
        if isinstance(made, str):
            return self.refuse(self.name_of(layer), f"{node.op_type} {node.name!r} stays behind it: {made}")
        try:
            reason = self._difference(own, made, node, layer, y)
        except NotComputed as error:
            reason = str(error)
        if reason:
            return self.refuse(self.name_of(layer), f"{node.op_type} {node.name!r} stays behind it: {reason}")
        self._found[str(y.name)] = made
        return MatchResult()

    def _difference(self, own: _Epilogue, made: _Epilogue, node: NodeProto, layer: ir.Node, y: ir.Value) -> str:
        """Why the new layer is not the old one and the node; nothing where it is."""
        filters, rank = len(own.bias), _KINDS[self._kind]
        expression = expression_of(str(y.name), self.layers.wiring, filters, rank, str(layer.outputs[0].name))
        if expression is None:
            return "its constants differ from place to place"
        packs = [use.node for use in y.uses() if use.node.domain == DOMAIN and use.node.op_type == "BinaryPack"]
        for numbers in numbers_of(_terms(layer), filters):
            before, after = expression.of(own.of(numbers)), made.of(numbers)
            if not (np.abs(after - before) <= _TOLERANCE * np.maximum(1, np.abs(before))).all():
                return f"it would be off by more than {_TOLERANCE:g}"
            for pack in packs:
                limits = _numbers(pack.inputs[1])
                if ((before > limits) != (after > limits)).any() or ((before >= limits) != (after >= limits)).any():
                    return "a sign of it would change"
        return ""

    def rewrite(self, op: Any, bits: ir.Value, sums: ir.Value, y: ir.Value, other: ir.Value | None = None) -> ir.Value:
        layer, made = sums.producer(), self._found[str(y.name)]
        assert layer is not None  # the pattern has found it
        arrays = {"multiplier": made.multiplier, "bias": made.bias, "activation": np.stack(made[2:])}
        stored = [self.store(op, f"{self.name_of(layer)}.{name}", array) for name, array in arrays.items()]
        found: ir.Value = getattr(op, self._kind)(*layer.inputs[:2], *stored, _domain=DOMAIN, **dict(layer.attributes))
        return self.call(found, self.name_of(layer))


def _epilogue_of(layer: ir.Node) -> _Epilogue:
    multiplier, bias, activation = (_numbers(value) for value in layer.inputs[2:5])
    return _Epilogue(multiplier, bias, *np.broadcast_to(activation, (3, len(bias))))


def _terms(layer: ir.Node) -> int:
    """How many signs are in one sum."""
    places = math.prod(_numbers(layer.inputs[1]).shape[1:-1])
    return layer.attributes.get_int("channels", 0) // layer.attributes.get_int("group", 1) * places


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None  # all that `bnn` operators read besides bits is stored
    return value.const_value.numpy()


def _with(own: _Epilogue, node: NodeProto, sums: str, layers: Layers, rank: int) -> _Epilogue | str:
    """The epilogue with what a node does; a reason where it cannot have it, "" where it is a sum of two values."""
    if list(node.input).count(sums) > 1:
        return "it reads them twice"
    others = [name for name in node.input if name and name != sums]
    constants = [layers.wiring.constant(name) for name in others]
    if any(array is None for array in constants):
        return ""
    arrays = [
        _per_channel(array, len(own.bias), 1 if node.op_type == "BatchNormalization" else rank)
        for array in constants if array is not None and array.dtype == np.float32
    ]  # fmt: skip
    if len(arrays) < len(others) or len(node.output) > 1 or attribute_of(node, "training_mode"):
        return "it is not in FP32, or is training"
    if any(array is None for array in arrays):
        return "its constants differ from place to place"
    made = _RULES[node.op_type](own, node, *arrays)
    return made if made is not None else "it comes after an activation that it would turn round"


def _per_channel(array: np.ndarray, filters: int, rank: int) -> np.ndarray | None:
    """One number a filter, of a constant that meets a value of so many dimensions."""
    axis = 0 if rank == 1 else 1
    whole = array.reshape((1,) * (rank - array.ndim) + array.shape) if array.ndim <= rank else array
    shape = tuple(filters if i == axis else 1 for i in range(rank))
    if array.size != 1 and whole.shape != shape:
        return None
    return np.broadcast_to(array.reshape(-1), filters)


def _norm(own: _Epilogue, node: NodeProto, *arrays: np.ndarray) -> _Epilogue | None:
    """In FP32 and in ONNX Runtime's order: where sums are whole and have no bias, it is the same number."""
    gamma, beta, mean, variance = arrays
    epsilon = attribute_of(node, "epsilon")
    factor = np.float32(1) / np.sqrt(variance + np.float32(_EPSILON if epsilon is None else epsilon)) * gamma
    scaled = own.scaled(factor)
    return None if scaled is None else scaled.added(beta - mean * factor)


def _divided(own: _Epilogue, _: NodeProto, divisor: np.ndarray) -> _Epilogue | None:
    return own.scaled(np.float32(1) / divisor) if divisor.all() else None


def _leaky(own: _Epilogue, node: NodeProto) -> _Epilogue | None:
    slope = attribute_of(node, "alpha")
    return own.bent(np.full_like(own.slope, 0.01 if slope is None else slope))


_RULES: dict[str, Callable[..., _Epilogue | None]] = {
    "BatchNormalization": _norm,
    "Mul": lambda own, _, factor: own.scaled(factor),
    "Div": _divided,
    "Add": lambda own, _, number: own.added(number),
    "Sub": lambda own, _, number: own.added(-number),
    "Relu": lambda own, _: own.bent(np.zeros_like(own.slope)),
    "LeakyRelu": _leaky,
    "PRelu": lambda own, _, slope: own.bent(slope),
}
