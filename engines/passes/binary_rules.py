"""What the rewrite rules of binary layers have in common: they read `bnn` operators that are there already, and say why
they leave one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, NodeProto, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import RULE_NAME_TAG, MatchResult, pattern

from engines.graphs import all_graphs, reads_of
from engines.passes.binary_wiring import Wiring
from engines.passes.half_slots import attribute_of
from engines.passes.names import FreeNames
from engines.plugins.ops import DOMAIN, VERSION
from engines.plugins.reference import finished

__all__ = ["BinaryRule", "Layers", "applied", "maker_of"]

_SUMS = ("BinaryConv2d", "BinaryGemm")


class Layers:
    """The layers of a model whose sums are floats, by the name of those, and who reads what. It is made before rules
    are applied; they take away nodes that it knows, and change no value.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.called: dict[ir.Node, str] = {}
        """New nodes and the names that they are to have, once their first holders are gone."""
        self.wiring = Wiring(model)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self.by_output = {n.output[0]: n for n in graph.node if n.domain == DOMAIN and n.op_type in _SUMS}
        self.reads = Counter(name for node in graph.node for name in node.input)
        for node in graph.node:
            self.reads.update(reads_of(node).difference(node.input))  # what bodies read
        self.reads.update(value.name for value in graph.output)
        self.names = FreeNames(graph)

    def array(self, name: str) -> np.ndarray:
        """A stored tensor: all that `bnn` operators read besides bits is stored."""
        return numpy_helper.to_array(self._stored[name])

    def terms(self, layer: NodeProto) -> int:
        """How many signs are in one sum."""
        places = math.prod(self._stored[layer.input[1]].dims[1:-1])
        return int(attribute_of(layer, "channels") // (attribute_of(layer, "group") or 1) * places)

    def values(self, layer: NodeProto, numbers: np.ndarray) -> np.ndarray:
        """What it gives for whole numbers: FP32 [numbers, filters] -> the same."""
        multiplier, bias, activation = (self.array(name) for name in layer.input[2:5])
        return finished(numbers, multiplier, bias, np.broadcast_to(activation, (3, len(multiplier))))


class BinaryRule(pattern.RewriteRuleClassBase):
    """A rule that is given the layers, and writes the reason why it leaves one into `left`, by the layer's name."""

    def __init__(self, layers: Layers, left: dict[str, str], **keys: Any) -> None:
        super().__init__(**keys)
        self.layers, self.left = layers, left

    def name_of(self, node: ir.Node) -> str:
        """Its name in the end."""
        return self.layers.called.get(node, node.name or "")

    def refuse(self, name: str | None, reason: str) -> MatchResult:
        """Say why not; without a reason where the rule does not concern it."""
        if reason and name:
            self.left[name] = reason
        result = MatchResult()
        result.fail(reason)
        return result

    def store(self, op: Any, name: str, array: np.ndarray) -> ir.Value:
        """A new stored tensor."""
        value: ir.Value = op.initializer(ir.tensor(np.ascontiguousarray(array)), name=self.layers.names(name))
        return value

    def call(self, value: ir.Value, name: str | None) -> ir.Value:
        """Name the new node that makes a value, and the value, which nothing in the bodies of others may be called."""
        node = value.producer()
        assert node is not None  # it was just made
        value.name = self.layers.names(f"{name}.value")
        self.layers.called[node] = name or ""
        return value


def maker_of(value: ir.Value, name: str) -> ir.Value:
    """The value of that name somewhere before this one, as it is now: what makes it may have been rewritten."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        one = waiting.pop()
        if one.name == name:
            return one
        node = one.producer()
        if node is not None and one not in seen:
            waiting.extend(reversed([read for read in node.inputs if read is not None]))
        seen.add(one)
    raise AssertionError(f"{name} is not before {value.name}")


def applied(model: ModelProto, layers: Layers, rules: Sequence[Any]) -> ModelProto:
    """The model after the rules, without what nobody reads; the same object where none has changed it."""
    if any(graph.sparse_initializer for graph in all_graphs(model.graph)):
        return model  # the rewriter would lose them
    try:
        graph = ir.from_proto(model)
    except Exception:  # it does not read every form that ONNX has
        return model
    graph.graph.opset_imports.setdefault(DOMAIN, VERSION)
    if not pattern.RewriteRuleSet(rules).apply_to_model(graph):
        return model
    RemoveUnusedNodesPass()(graph)
    for node, name in layers.called.items():
        node.name = name
    for node in graph.graph.all_nodes():
        node.metadata_props.pop(RULE_NAME_TAG, None)
    changed: ModelProto = ir.to_proto(graph)
    return changed
