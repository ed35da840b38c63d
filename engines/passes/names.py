"""Give every node a name of its own, so that a report, an error or a list of exceptions can speak of it.

Pattern   a node without a name, or with one that an earlier node has (bodies of Loop, Scan and If count too)
Rewrite   `<operator>_<number>`, counted for each operator from 0; the first holder of a name keeps it
Check     names of nodes mean nothing to a runtime: nothing else changes, which the verifier compares byte by byte
"""

from __future__ import annotations

from collections import Counter

from onnx import GraphProto, ModelProto

from engines.graphs import all_graphs, all_nodes, copy_of

__all__ = ["FreeNames", "name_nodes", "with_plain_names"]


def name_nodes(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with unique node names. It is the same object where they are unique already."""
    given = Counter(node.name for node in all_nodes(model.graph))
    if "" not in given and all(count == 1 for count in given.values()):
        return model, ""
    copy = copy_of(model)
    numbers: Counter[str] = Counter()
    used: set[str] = set()
    for node in all_nodes(copy.graph):
        while not node.name or node.name in used:
            candidate = f"{node.op_type}_{numbers[node.op_type]}"
            numbers[node.op_type] += 1
            if candidate not in given:
                node.name = candidate
        used.add(node.name)
    return copy, ""


def with_plain_names(model: ModelProto) -> ModelProto:
    """A copy in which no node has a name: what `name_nodes` must leave as it was."""
    copy = copy_of(model)
    for node in all_nodes(copy.graph):
        node.ClearField("name")
    return copy


class FreeNames:
    """Hands out names that no node and no value of a graph or its bodies has, nor one that was handed out before."""

    def __init__(self, graph: GraphProto) -> None:
        self._taken: set[str] = set()
        for one in all_graphs(graph):
            for values in (one.input, one.output, one.initializer, one.node):
                self._taken.update(value.name for value in values)
            self._taken.update(name for node in one.node for name in (*node.input, *node.output))

    def __call__(self, wanted: str) -> str:
        """The wanted name, with underscores behind it where it is taken."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted
