"""Bring recurrent layers that have the rows first (layout 1) to layout 0, which all runtimes have.

Algebra   with layout 1, X is [rows, steps, features], Y [rows, steps, directions, hidden], every state [rows,
          directions, hidden]; with layout 0, [steps, rows, features], [steps, directions, rows, hidden], [directions,
          rows, hidden]. The layer between is the same: LSTM, GRU and RNN of opset 14, operators' own text
Pattern   LSTM, GRU or RNN with layout 1, in the graph or in a body of it
Check     ONNX Runtime does not run layout 1, so no verifier compares this pass: its test does, with ONNX's own
          evaluator. Axes only are moved, no number changes
Rewrite   Transpose before X and the first states, Transpose behind Y and the last states
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, helper

from engines.graphs import all_graphs, all_nodes, copy_of
from engines.passes.names import FreeNames

__all__ = ["time_first"]

_RECURRENT = ("LSTM", "GRU", "RNN")
_SWAPPED, _OUT = (1, 0, 2), (2, 0, 1, 3)
_FIRST_STATES = (5, 6)
"""Positions of initial_h and initial_c among the inputs."""


def time_first(model: ModelProto) -> tuple[ModelProto, str]:
    """The model without layout 1, and how many layers had it. It is the same object where there are none."""
    if not any(_has_rows_first(node) for node in all_nodes(model.graph)):
        return model, ""
    copy = copy_of(model)
    names, count = FreeNames(copy.graph), 0
    for graph in reversed(list(all_graphs(copy.graph))):  # bodies first: a graph gets copies of its nodes
        count += sum(map(_has_rows_first, graph.node))
        _rewrite(graph, names)
    return copy, f"{count} recurrent layers had their rows first"


def _has_rows_first(node: NodeProto) -> bool:
    return node.op_type in _RECURRENT and any(one.name == "layout" and one.i == 1 for one in node.attribute)


def _rewrite(graph: GraphProto, names: FreeNames) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.extend(_turned(node, names) if _has_rows_first(node) else [node])


def _turned(node: NodeProto, names: FreeNames) -> Iterator[NodeProto]:
    kept = [one for one in node.attribute if one.name != "layout"]
    del node.attribute[:]
    node.attribute.extend(kept)
    for position in (0, *_FIRST_STATES):
        if position < len(node.input) and node.input[position]:
            turned = names(f"{node.input[position]}.turned")
            yield _transpose(node.input[position], turned, _SWAPPED, names)
            node.input[position] = turned
    after = []
    for position, name in enumerate(node.output):
        if name:
            turned = names(f"{name}.turned")
            after.append(_transpose(turned, name, _SWAPPED if position else _OUT, names))
            node.output[position] = turned
    yield node
    yield from after


def _transpose(source: str, target: str, order: tuple[int, ...], names: FreeNames) -> NodeProto:
    return helper.make_node("Transpose", [source], [target], name=names(f"{target}.turn"), perm=order)
