"""Walk OpenVINO's graph, and put something else in a place of it."""

from __future__ import annotations

from collections.abc import Iterator

import openvino as ov

__all__ = ["nodes_of", "replace"]

_LOOPS = frozenset({"Loop", "TensorIterator"})


def nodes_of(graph: ov.Model) -> Iterator[ov.Node]:
    """In order; bodies of If and of loops before the node that has them. Nodes may be replaced meanwhile."""
    for node in graph.get_ordered_ops():
        for body in _bodies(node):
            yield from nodes_of(body)
        yield node


def _bodies(node: ov.Node) -> list[ov.Model]:
    if node.get_type_name() == "If":
        return [node.get_then_body(), node.get_else_body()]
    return [node.get_function()] if node.get_type_name() in _LOOPS else []


def replace(old: ov.Output, value: ov.Output) -> None:
    """Every reader of the old output reads the value, which takes the names too."""
    value.set_names(old.get_names())
    for target in old.get_target_inputs():
        target.replace_source_output(value)
