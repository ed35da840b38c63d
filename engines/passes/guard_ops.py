"""The nodes that guards are made of, in operators that every opset from 9 on has in this form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Checks", "Nodes"]

_PREFIX = "bitserve.guard"


class Checks:
    """Makes nodes with names of their own. A count is an FP32 scalar: how many values are wrong (an estimate from
    2**24 on; never 0 for more than none).
    """

    def __init__(self, prefix: str = _PREFIX) -> None:
        self._prefix, self._made = prefix, 0

    def name(self) -> str:
        self._made += 1
        return f"{self._prefix}.{self._made}"

    def constant(self, value: np.ndarray) -> tuple[str, NodeProto]:
        name = self.name()
        return name, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))

    def outside(
        self, table: str, index: str, kind: int, axes: Sequence[int], dims: Sequence[int | None], *, scalar: bool
    ) -> tuple[list[NodeProto], str, str]:
        """Which indices lie outside [-d, d - 1], d being the table's size along each of `axes`.

        `dims` are those sizes where known. Returns the nodes, the name of the mask (the index's shape), and the count.
        """
        nodes, low, high = self._bounds(table, kind, axes, dims, scalar=scalar)
        below, fits, above, bad = (self.name() for _ in range(4))
        nodes += [
            helper.make_node("Less", [index, low], [below]),
            helper.make_node("Less", [index, high], [fits]),
            helper.make_node("Not", [fits], [above]),
            helper.make_node("Or", [below, above], [bad]),
        ]
        counting, count = self.count(bad)
        return [*nodes, *counting], bad, count

    def _bounds(
        self, table: str, kind: int, axes: Sequence[int], dims: Sequence[int | None], *, scalar: bool
    ) -> tuple[list[NodeProto], str, str]:
        """Nodes and names of the smallest index (-d) and of the first one too large (d), in the index's own type."""
        known = [d for d in dims if d is not None]
        if len(known) == len(axes):
            sizes = np.array(known[0] if scalar else known, helper.tensor_dtype_to_np_dtype(kind))
            high, node = self.constant(sizes)
            low, negative = self.constant(-sizes)
            return [node, negative], low, high
        shape, taken, high, low = (self.name() for _ in range(4))
        which, node = self.constant(np.array(axes[0] if scalar else axes, np.int64))
        return (
            [
                node,
                helper.make_node("Shape", [table], [shape]),
                helper.make_node("Gather", [shape, which], [taken]),
                helper.make_node("Cast", [taken], [high], to=kind),
                helper.make_node("Neg", [high], [low]),
            ],
            low,
            high,
        )

    def beyond_fp32(self, value: str) -> tuple[list[NodeProto], str]:
        """How many FP64 numbers are infinite or have become the largest one of FP32. NaN speaks for itself."""
        largest = np.finfo(np.float32).max
        bound, constant = self.constant(np.array(np.nextafter(largest, np.float32(0)), np.float64))
        magnitude, bad = self.name(), self.name()
        counting, count = self.count(bad)
        return [
            constant,
            helper.make_node("Abs", [value], [magnitude]),
            helper.make_node("Less", [bound, magnitude], [bad]),
            *counting,
        ], count

    def count(self, bad: str) -> tuple[list[NodeProto], str]:
        """How many elements of a mask are true."""
        numbers = self.name()
        summing, count = self.sum(numbers)
        return [helper.make_node("Cast", [bad], [numbers], to=TensorProto.FLOAT), *summing], count

    def sum(self, numbers: str) -> tuple[list[NodeProto], str]:
        """Of all elements, whatever the shape; 0 for none."""
        count = self.name()
        return [helper.make_node("ReduceSum", [numbers], [count], keepdims=0)], count

    def total(self, graph: GraphProto, counts: Sequence[str]) -> str:
        """Name of one scalar for all counts of a body, 0 where it has none."""
        if not counts:
            name, node = self.constant(np.zeros((), np.float32))
            graph.node.append(node)
            return name
        joined = self.name()
        self.join(graph, counts, joined)
        nodes, count = self.sum(joined)
        graph.node.extend(nodes)
        return count

    def join(self, graph: GraphProto, counts: Sequence[str], name: str) -> None:
        """Append nodes that put scalar counts into one vector."""
        one, node = self.constant(np.array([1], np.int64))
        parts = [self.name() for _ in counts]
        graph.node.append(node)
        graph.node.extend(helper.make_node("Reshape", [c, one], [p]) for c, p in zip(counts, parts, strict=True))
        graph.node.append(helper.make_node("Concat", parts, [name], axis=0))


class Nodes:
    """Collects nodes; every call returns the name of what it computes."""

    def __init__(self, checks: Checks) -> None:
        self.checks, self.nodes = checks, list[NodeProto]()

    def op(self, name: str, *inputs: str, **attributes: Any) -> str:
        out = self.checks.name()
        self.nodes.append(helper.make_node(name, inputs, [out], **attributes))
        return out

    def constant(self, value: float | list[int] | np.ndarray, dtype: np.dtype | type = np.float32) -> str:
        name, node = self.checks.constant(np.array(value, dtype))
        self.nodes.append(node)
        return name

    def number(self, name: str) -> str:
        """In FP32."""
        return self.op("Cast", name, to=TensorProto.FLOAT)

    def sizes(self, name: str, axes: Sequence[int]) -> str:
        """Of these axes, in FP32."""
        shape = self.op("Shape", name)
        return self.number(self.op("Gather", shape, self.constant(list(axes), np.int64)))

    def product(self, name: str) -> str:
        return self.op("ReduceProd", self.number(name), keepdims=0)

    def size(self, name: str) -> str:
        return self.number(self.op("Size", name))

    def count(self, bad: str) -> str:
        """How many elements of a mask are true."""
        nodes, count = self.checks.count(bad)
        self.nodes += nodes
        return count
