"""Store weights in half precision and compute in FP32: half the bytes, for CPUs, which have no arithmetic of it.

Algebra   |half(w) - w| <= 2**-11 |w| from 6.1e-5 to 65504, rounded here, once; every FP16 number is an FP32 number
Pattern   a stored FP32 tensor of 256 numbers or more
Check     every node that reads it runs in half by `half_choice.choose_halves`, or is kept from it for another reason
          than its weights; so a target that computes in half has the same weights
Rewrite   the tensor becomes `<name>.half` in FP16; a Cast to FP32 makes the name
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, TensorProto, helper

from engines.graphs import copy_of, reads_of
from engines.passes.half import as_half
from engines.passes.half_choice import LENGTHS_REASON, HalfChoice, choose_halves
from engines.passes.half_slots import slot_inputs
from engines.passes.names import FreeNames, name_nodes
from engines.passes.weights import store_constants

__all__ = ["FEWEST", "store_half"]

FEWEST = 256
"""Numbers of a tensor that is worth a node in the graph."""


def store_half(model: ModelProto, keep: Collection[str] = frozenset()) -> tuple[ModelProto, str]:
    """The model with its weights in FP16; `keep` names nodes whose weights stay. The same object where there are none.

    The note says how much of the weights it is.
    """
    stored, _ = name_nodes(store_constants(model)[0])
    floats = [tensor for tensor in stored.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    chosen = _chosen(stored, choose_halves(stored, keep)) & {t.name for t in floats if _size(t) >= FEWEST}
    if not chosen:
        return model, "no weights are stored in half precision"
    copy = copy_of(stored)
    free = FreeNames(stored.graph)
    casts = []
    for tensor in copy.graph.initializer:
        if tensor.name in chosen:
            name, half = tensor.name, free(f"{tensor.name}.half")
            tensor.CopyFrom(as_half(tensor, half))
            casts.append(helper.make_node("Cast", [half], [name], half, to=TensorProto.FLOAT))
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*casts, *nodes])
    part = sum(_size(t) for t in floats if t.name in chosen) / sum(map(_size, floats))
    return copy, f"{len(chosen)} tensors, {part:.0%} of all FP32 weights, are stored in half precision"


def _chosen(model: ModelProto, choice: HalfChoice) -> set[str]:
    """Names that nodes read in half, and nobody in FP32."""
    half, read = set[str](), {value.name for value in model.graph.output}
    for i, node in enumerate(model.graph.node):
        is_half = i in choice.half or choice.kept.get(i) == LENGTHS_REASON
        own = slot_inputs(node, choice.slots[i]) if is_half else []
        half.update(own)
        read.update(reads_of(node).difference(own))
    return half - read


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))
