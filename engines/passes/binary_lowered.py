"""Write binary layers for GPUs that have no 1-bit products: INT8 or FP8 by QuantizeLinear and DequantizeLinear (Q/DQ).

Algebra   -1, 0 and +1 are exact in both with a scale of 1; their sums are whole numbers, exact in FP32 up to 2**24, and
          are compared with thresholds, or finished as `engines.plugins.reference.finished` does it, in FP32
Pattern   `bnn` operators, as `binary_layers.with_binary_layers` leaves them
Check     `binary_written.obstacle_of`; sums of fewer than 2**24 signs; functions that the file has for them are ours
Rewrite   Q/DQ before each layer, weights stored in 8 bits with DequantizeLinear alone, Conv or Gemm; what bits were is
          floats between layers. Zeros around are the layer's own pads, ones are put there by Pad before Q/DQ

Weights take one byte where they took one bit. A GPU that adds the bias in the same step as it multiplies rounds once
instead of twice: what it makes lies as close to the true value, but may differ from the reference in its last place.
Bits that thresholds make are of whole numbers, and never differ.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.graphs import copy_of, opset_of
from engines.passes.binary_written import LAYERS, Writer, obstacle_of, rewritten
from engines.passes.names import name_nodes
from engines.plugins.bodies import functions
from engines.plugins.ops import DOMAIN

__all__ = ["Kind", "Lowered", "lowered"]

Kind = Literal["INT8", "FP8"]
_TYPES: dict[Kind, int] = {"INT8": TensorProto.INT8, "FP8": TensorProto.FLOAT8E4M3FN}
_ONES: dict[Kind, tuple[int, int]] = {"INT8": (0x01, 0xFF), "FP8": (0x38, 0xB8)}
"""The bytes of +1 and of -1."""
_EXACT_BELOW = 2**24
_OPSET = 19
"""From here on there is FP8, and Q/DQ of more than one type of scale."""


class Lowered(NamedTuple):
    """A model without `bnn` operators. `stored_bytes` are those of the weights of each layer, by its name.

    `names` are those of all nodes that were written: they are to stay in FP32 (`keep` of `half.to_half`), since half
    has whole numbers to 2048 alone.
    """

    model: ModelProto
    stored_bytes: dict[str, int]
    names: frozenset[str]


def lowered(model: ModelProto, kind: Kind) -> Lowered:
    """The model with its binary layers in this type. It is the same object where it has none.

    Raises ModelRefused for operators whose bits come from others or go there, and for sums that FP32 cannot hold.
    """
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return Lowered(model, {}, frozenset())
    copy = copy_of(name_nodes(model)[0])
    writer = _Eight(copy, kind)
    why = _obstacle(copy) or writer.too_long()
    if why:
        raise ModelRefused(f"binary layers cannot be written in {kind}: {why}")
    rewritten(copy, writer)
    return Lowered(copy, writer.stored_bytes, frozenset(writer.written))


def _obstacle(model: ModelProto) -> str:
    known = {one.name: one for one in functions()}
    if any(known.get(one.name, one) != one for one in model.functions if one.domain == DOMAIN):
        return "their functions are others"
    if (opset_of(model) or 0) < _OPSET:
        return f"opset {opset_of(model)}; expected {_OPSET} or later"
    return obstacle_of(model, known.values())


class _Eight(Writer):
    """Operands in 8 bits, all else in FP32."""

    def __init__(self, model: ModelProto, kind: Kind) -> None:
        super().__init__(model)
        self._kind: Kind = kind
        self._rounded: dict[str, str] = {}
        self._scales: list[str] = []
        self.stored_bytes: dict[str, int] = {}
        self.written: set[str] = set()

    def too_long(self) -> str:
        """Names of layers whose sums FP32 cannot hold, in words; nothing where there are none."""
        long = [n.name for n in self._graph.node if _is_layer(n) and self.terms(n) >= _EXACT_BELOW]
        return f"{', '.join(long)} sum up more than {_EXACT_BELOW - 1} signs, and FP32 does not" if long else ""

    def of(self, node: NodeProto) -> list[NodeProto]:
        made = super().of(node)
        self.written.update(one.name for one in made)
        return made

    def data(self, x: str) -> tuple[list[NodeProto], str]:
        if x in self._rounded:
            return [], self._rounded[x]
        quantized, self._rounded[x] = self.value(f"{x}.quantized"), self.value(f"{x}.exact")
        return [
            self.node("QuantizeLinear", [x, *self._scale()], quantized),
            self.node("DequantizeLinear", [quantized, *self._scale()], self._rounded[x]),
        ], self._rounded[x]

    def signs(self, layer: NodeProto, negative: np.ndarray) -> tuple[list[NodeProto], str]:
        plus, minus = _ONES[self._kind]
        octets = np.where(negative, np.uint8(minus), np.uint8(plus)).tobytes()
        tensor = helper.make_tensor("", _TYPES[self._kind], negative.shape, octets, raw=True)
        stored, name = self.keep(layer, "signs", tensor), self.value(f"{layer.name}.weights.exact")
        self.stored_bytes[layer.name] = len(octets)
        return [self.node("DequantizeLinear", [stored, *self._scale()], name)], name

    def finished(self, layer: NodeProto, sums: str) -> list[NodeProto]:
        multiplier, bias, activation = (self.array(layer, i) for i in (2, 3, 4))
        made: list[NodeProto] = []

        def step(kind: str, *given: str) -> str:
            made.append(self.node(kind, list(given), self.value(f"{layer.name}.{kind.lower()}")))
            return str(made[-1].output[0])

        def stored(name: str, array: np.ndarray) -> str:
            return self.per_filter(layer, name, array)

        v = sums
        if (multiplier != 1).any():
            v = step("Mul", v, stored("multiplier", multiplier))
        is_positive = bool((multiplier > 0).all())
        if bias.any() or not is_positive:
            v = step("Add", v, stored("bias", bias))
        shift, slope, offset = activation
        is_zero = not (shift.any() or offset.any())
        # sums are never -0, so that only these make it of them; else a sum with 0 changes nothing, and is left out
        is_plus = is_positive or not _has_minus_zero(bias)
        if is_zero and is_plus and (slope == 1).all():
            return made
        if is_zero and is_plus and not slope.any() and not _has_minus_zero(offset) and self._is_finite(layer):
            step("Relu", v)
            return made
        limit = stored("shift", shift)
        moved = step("Sub", v, limit)
        bent = step("Mul", moved, stored("slope", slope))
        chosen = step("Where", step("Greater", v, limit), moved, bent)
        step("Add", chosen, stored("offset", offset))
        return made

    def _is_finite(self, layer: NodeProto) -> bool:
        """Whether no sum becomes infinite: Relu then is what a slope of 0 makes, else that is NaN."""
        multiplier, bias = (np.abs(self.array(layer, i).astype(np.float64)) for i in (2, 3))
        return bool((multiplier * self.terms(layer) + bias < np.finfo(np.float32).max / 2).all())

    def _scale(self) -> list[str]:
        """Names of the one scale and zero point that all share."""
        if not self._scales:
            scale = numpy_helper.from_array(np.array(1, np.float32), self.value("binary.scale"))
            zero = helper.make_tensor(self.value("binary.zero"), _TYPES[self._kind], (), b"\0", raw=True)
            self._graph.initializer.extend([scale, zero])
            self._scales = [scale.name, zero.name]
        return self._scales


def _is_layer(node: NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in LAYERS


def _has_minus_zero(array: np.ndarray) -> bool:
    return bool((np.signbit(array) & (array == 0)).any())
