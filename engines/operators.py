"""Name the operators of a model, and list the nodes that somebody does not know: all of them, not the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from onnx import ModelProto, NodeProto, defs

from engines.graphs import all_nodes

__all__ = ["Found", "find_nodes", "is_function", "listed", "operator_of", "operators_of"]

Found = tuple[str, str]
"""An operator, and the name of a node of it."""

_LONGEST = 50


def operator_of(node: NodeProto) -> str:
    """`Conv`; with the domain in front where it is not a standard one: `com.example.Foo`."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def operators_of(model: ModelProto) -> Counter[str]:
    """How many nodes of each operator the model has, those in bodies included."""
    return Counter(operator_of(node) for node in all_nodes(model.graph))


def is_function(domain: str, op_type: str, opset: int) -> bool:
    """Whether ONNX defines the operator, as of `opset`, by other operators: then a runtime needs no code for it.

    Operators that ONNX does not know may be functions of their makers: they count as such.
    """
    if not defs.has(op_type, opset, domain):
        return True
    schema: Any = defs.get_schema(op_type, opset, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)


def find_nodes(model: ModelProto, is_meant: Callable[[NodeProto], bool]) -> list[Found]:
    """Every node that is meant, in order, those in bodies included. A node without a name goes by its first output."""
    return [
        (operator_of(node), node.name or next(iter(node.output), ""))
        for node in all_nodes(model.graph)
        if is_meant(node)
    ]


def listed(found: Sequence[Found]) -> str:
    """Like `Foo (nodes 'a', 'b'), Bar (node 'c')`; of one operator, 50 nodes are named and the rest counted."""
    nodes: dict[str, list[str]] = {}
    for operator, node in found:
        nodes.setdefault(operator, []).append(node)
    return ", ".join(f"{operator} ({_named(names)})" for operator, names in nodes.items())


def _named(names: Sequence[str]) -> str:
    said = ", ".join(repr(name) for name in names[:_LONGEST])
    more = f" and {len(names) - _LONGEST} more" if len(names) > _LONGEST else ""
    return f"node{'s' if len(names) > 1 else ''} {said}{more}"
