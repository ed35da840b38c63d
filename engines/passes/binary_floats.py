"""Write the `bnn` operators of a file in floats, so that every binary model has one form, however it was stored.

Algebra   that of `binary_written`, then Mul, Add and PRelu with shifts
Pattern   operators of domain `bnn` whose functions in the file are word for word those of `engines.plugins.bodies`
Check     bits are read by such operators alone, weights are stored, floats of all of them fit into a file; otherwise
          nothing is written, and the functions are inlined as any other
Rewrite   the finding of binary layers packs them again, last: proofs, ranges and targets know floats
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto

from engines.errors import ModelRefused
from engines.graphs import all_nodes, copy_of
from engines.passes.binary_written import LAYERS, WEIGHTS, Writer, obstacle_of, rewritten
from engines.plugins.bodies import functions
from engines.plugins.ops import DOMAIN

__all__ = ["binary_floats"]

_MOST_BYTES = 2**31 - 1


def binary_floats(model: ModelProto) -> tuple[ModelProto, str]:
    """The model without `bnn` operators. It is the same object where it has none, or others of that name."""
    if not any(node.domain == DOMAIN for node in all_nodes(model.graph)):
        return model, ""
    why = _obstacle(model)
    if why:
        return model, f"operators of domain {DOMAIN!r} are read as the functions that they are: {why}"
    copy = copy_of(model)
    written = _Floats(copy)
    rewritten(copy, written)
    return copy, f"{written.layers} layers were stored in bits"


def _obstacle(model: ModelProto) -> str:
    """Why the file's operators cannot be taken for those that are known here; nothing where they can."""
    own, known = {one.name: one for one in model.functions if one.domain == DOMAIN}, functions()
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    why = obstacle_of(model, known)
    if why:
        return why
    if any(own.get(one.name) != one for one in known if one.name in {node.op_type for node in nodes}):
        return "their functions are others"
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [stored[node.input[WEIGHTS]] for node in nodes if node.op_type in LAYERS]
    if 4 * 32 * sum(math.prod(tensor.dims) for tensor in weights) > _MOST_BYTES:
        raise ModelRefused(f"binary layers with more than {_MOST_BYTES} bytes of weights in floats")
    return ""


class _Floats(Writer):
    """All of it in FP32."""

    def data(self, x: str) -> tuple[list[NodeProto], str]:
        return [], x

    def signs(self, layer: NodeProto, negative: np.ndarray) -> tuple[list[NodeProto], str]:
        return [], self.store(layer, "signs", np.where(negative, np.float32(-1), np.float32(1)))

    def finished(self, layer: NodeProto, sums: str) -> list[NodeProto]:
        multiplier, bias, activation = (self.array(layer, i) for i in (2, 3, 4))
        shift, slope, offset = activation
        steps: list[tuple[str, np.ndarray]] = [("Mul", multiplier)] if (multiplier != 1).any() else []
        steps += [("Add", bias)] if bias.any() else []
        if shift.any() or (slope != 1).any() or offset.any():
            steps += [("Sub", shift)] if shift.any() else []
            steps += [("PRelu", slope)] if slope.any() else [("Relu", slope)]
            steps += [("Add", offset)] if offset.any() else []
        made: list[NodeProto] = []
        for kind, array in steps:
            further = [] if kind == "Relu" else [self.per_filter(layer, kind.lower(), array)]
            given = made[-1].output[0] if made else sums
            made.append(self.node(kind, [given, *further], self.value(f"{layer.name}.{kind.lower()}")))
        return made
