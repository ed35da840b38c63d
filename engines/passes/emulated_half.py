"""Judge half precision where nothing computes in it: FP32 operators, and a rounding behind each that the plan runs in
half. For ONNX Runtime with graph optimizations off (`engines.reference`), which leaves the pairs of Casts alone.

Algebra   a kernel in half reads and writes FP16 and adds up in FP32, so it makes half(f(x)); FP32 operators make f(x)
          with a relative error of about 2**-24, far below half's 2**-11
Pattern   what `half.to_half` makes of the model: every value of it that is FP16
Check     operators of `half_rules.EXACT` make no number that half does not hold: they need no rounding
Rewrite   the graph of `to_half`, widened (`widen.widen_halves`: stored tensors keep their rounded values), with
          Cast(FP16), Cast(FP32) behind every node that made FP16

Roundings inside an operator are not seen: the states of a recurrent layer are rounded as they leave it only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.graphs import copy_of, reads_of
from engines.passes.calm_softmax import with_outputs
from engines.passes.guard_ops import Checks, Nodes
from engines.passes.half import to_half
from engines.passes.half_rules import EXACT
from engines.passes.half_slots import attribute_of, value_types
from engines.passes.names import FreeNames, name_nodes
from engines.passes.widen import widen_halves
from engines.reference import Reference

__all__ = ["count_infinities", "emulate_half"]

_PREFIX = "bitserve.emulated"


class _Rounding(NamedTuple):
    """`exact` before, `rounded` behind it; `nodes` are those to keep in FP32 so that it goes away."""

    exact: str
    rounded: str
    nodes: tuple[str, ...]


def emulate_half(model: ModelProto, keep: Collection[str] = frozenset()) -> ModelProto:
    """The model as `to_half(model, keep)` runs it, in FP32 operators. Inputs and outputs are those of the model."""
    return _emulated(model, keep)[0]


def count_infinities(
    model: ModelProto, samples: Iterable[dict[str, np.ndarray]], keep: Collection[str] = frozenset()
) -> dict[str, int]:
    """How many values become infinite by rounding to half that were finite before, over all samples, by node.

    `model` and `keep` are what `emulate_half` is given. A node that runs in half counts what it makes, and what it
    reads of others that do not (so keeping all that is named here in FP32 moves the conversion behind them). Nodes
    without any are left out. Names are those of `names.name_nodes`, the most infinities come first.

    Counted inside the graph, so that no more than the runtime's own intermediate values are held in memory. Raises
    ModelRefused where ONNX Runtime does not run the model.
    """
    emulated, roundings = _emulated(model, keep)
    counter = Nodes(Checks(f"{_PREFIX}.count"))
    counts = {rounding: _counted(counter, rounding) for rounding in roundings}
    emulated.graph.node.extend(counter.nodes)
    if not counts:
        return {}
    del emulated.graph.output[:]
    reference = Reference(with_outputs(emulated, list(counts.values())))
    found: Counter[str] = Counter()
    for sample in samples:
        seen = reference(sample)
        for rounding, name in counts.items():
            for node in rounding.nodes:
                found[node] += int(seen[name])
    return {node: count for node, count in found.most_common() if count}


def _emulated(model: ModelProto, keep: Collection[str]) -> tuple[ModelProto, list[_Rounding]]:
    named, _ = name_nodes(model)
    half, _ = to_half(named, keep)
    rounds = _rounds(half, {node.name for node in named.graph.node})
    wide = copy_of(widen_halves(half)[0])
    nodes, roundings, free = list(wide.graph.node), [], FreeNames(wide.graph)
    del wide.graph.node[:]
    for node in nodes:
        wide.graph.node.append(node)
        for position, blamed in rounds.get(node.name, {}).items():
            rounded = node.output[position]
            exact, stored = free(f"{rounded}.exact"), free(f"{rounded}.rounded")
            wide.graph.node[-1].output[position] = exact
            wide.graph.node.append(helper.make_node("Cast", [exact], [stored], to=TensorProto.FLOAT16))
            wide.graph.node.append(helper.make_node("Cast", [stored], [rounded], to=TensorProto.FLOAT))
            roundings.append(_Rounding(exact, rounded, blamed))
    return name_nodes(wide)[0], roundings


def _rounds(half: ModelProto, own: Collection[str]) -> dict[str, dict[int, tuple[str, ...]]]:
    """By node of a half graph, the positions of outputs that are rounded, and the nodes to blame for each.

    Nodes that are not the model's `own` are conversions: whoever reads them is to blame.
    """
    types = value_types(half)
    readers: dict[str, list[str]] = {}
    for node in half.graph.node:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node.name)
    return {
        node.name: {
            position: (node.name,) if node.name in own and not _is_cast(node) else tuple(readers.get(name, ()))
            for position, name in enumerate(node.output)
            if types.get(name) == TensorProto.FLOAT16
        }
        for node in half.graph.node
        if node.op_type not in EXACT
    }


def _is_cast(node: NodeProto) -> bool:
    return node.op_type == "Cast" and attribute_of(node, "to") == TensorProto.FLOAT16


def _counted(counter: Nodes, rounding: _Rounding) -> str:
    """Name of a whole number: infinities behind the rounding less those before it, which stay."""
    before, after = (
        counter.op("ReduceSum", counter.op("Cast", counter.op("IsInf", name), to=TensorProto.INT64), keepdims=0)
        for name in (rounding.exact, rounding.rounded)
    )
    return counter.op("Sub", after, before)
