"""Write the last window of a pool with `ceil_mode` out: OpenVINO 2026.4 counts and divides it in its own way.

Algebra   Along an axis of size L with pads a and b, stride s and a kernel that spans e = (k - 1) d + 1 with its
          dilation d, ONNX has n = ceil((L + a + b - e) / s) + 1 windows, and one less where the last would begin in the
          padding behind the data: (n - 1) s >= L + a. A window that reaches beyond L + a + b ends there.
          OpenVINO's MaxPool keeps the window that begins too late: what it gives is cut to n.
          Its AveragePool with `count_include_pad` divides by the whole kernel, also where a window ends earlier. So the
          data is padded with zeros to the end of the last window, (n - 1) s + e, and along each axis the average of
          window w is taken times k / min(k, ceil((L + a + b - w s) / d)), the elements that it has.
Pattern   MaxPool with ceil_mode = 1; AveragePool with ceil_mode = 1 and count_include_pad = 1
Check     `auto_pad` is NOTSET or VALID (with SAME the engine is right)
Rewrite   MaxPool, then Slice; Pad, then AveragePool without ceil_mode, and a Mul for each axis
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from engines.errors import ModelRefused
from engines.graphs import all_graphs, all_nodes, copy_of, inferred_types, opset_of
from engines.passes.guard_ops import Checks, Nodes

__all__ = ["with_pool_ends"]

_OLDEST_OPSET = 13
"""Pad and Slice take their numbers as inputs from there on, in one form."""
_SPATIAL = 2
"""First axis that a window moves along."""


def with_pool_ends(model: ModelProto) -> ModelProto:
    """A copy with these pools written out; the model itself where there are none.

    Raises ModelRefused for such a pool in an opset below 13, or of a type that is not known.
    """
    if not any(map(_is_meant, all_nodes(model.graph))):
        return model
    opset = opset_of(model) or 0
    if opset < _OLDEST_OPSET:
        raise ModelRefused(
            f"pools with ceil_mode are read in opset {_OLDEST_OPSET} and later; the model stays in opset {opset}"
        )
    copy, checks, kinds = copy_of(model), Checks("bitserve.pool"), inferred_types(model)
    for graph in all_graphs(copy.graph):
        _rewrite(graph, kinds, checks)
    return copy


def _rewrite(graph: GraphProto, kinds: dict[str, int], checks: Checks) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if not _is_meant(node):
            graph.node.append(node)
        elif node.op_type == "MaxPool":
            graph.node.extend(_Pool(node, checks).cut())
        else:
            graph.node.extend(_Pool(node, checks).divided(kinds.get(node.input[0], 0)))


def _is_meant(node: NodeProto) -> bool:
    if node.op_type not in ("MaxPool", "AveragePool") or node.domain not in ("", "ai.onnx"):
        return False
    given = _attributes(node)
    is_wrong = node.op_type == "MaxPool" or bool(given.get("count_include_pad"))
    return is_wrong and bool(given.get("ceil_mode")) and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID", b"")


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class _Pool:
    """One pool in the making. Sizes are vectors, one number for each spatial axis."""

    def __init__(self, node: NodeProto, checks: Checks) -> None:
        self._node, self._b = node, Nodes(checks)
        given = self._given = _attributes(node)
        self._kernel = np.array(given["kernel_shape"], np.int64)
        count = len(self._kernel)
        self._strides = np.array(given.get("strides") or [1] * count, np.int64)
        self._dilations = np.array(given.get("dilations") or [1] * count, np.int64)
        pads = given.get("pads") if given.get("auto_pad", b"NOTSET") != b"VALID" else None
        self._begin, self._end = np.array(pads or [0] * (2 * count), np.int64).reshape(2, count)
        self._spans = (self._kernel - 1) * self._dilations + 1
        axes = np.arange(_SPATIAL, _SPATIAL + count)
        self._axes = self._b.constant(axes, np.int64)
        self._sizes = self._b.op("Gather", self._b.op("Shape", node.input[0]), self._axes)
        self._padded = self._sum(self._sizes, self._begin + self._end)
        self._windows = self._counted()

    def cut(self) -> list[NodeProto]:
        """Nodes with the outputs of a MaxPool: its maxima, and their places where they are read."""
        b, outputs = self._b, list(self._node.output)
        starts = b.constant(np.zeros_like(self._kernel), np.int64)
        slices = []
        for position, name in enumerate(outputs):
            if name:
                self._node.output[position] = whole = b.checks.name()
                slices.append(helper.make_node("Slice", [whole, starts, self._windows, self._axes], [name]))
        return [self._node, *b.nodes, *slices]

    def divided(self, kind: int) -> list[NodeProto]:
        """Nodes with the output of an AveragePool over data of the element type `kind`."""
        b, node = self._b, self._node
        if not kind:
            raise ModelRefused(f"AveragePool {node.name or node.output[0]!r}: the type of its data is unknown")
        last = b.op("Mul", b.op("Sub", self._windows, b.constant([1], np.int64)), b.constant(self._strides, np.int64))
        beyond = b.op("Sub", self._sum(last, self._spans), self._padded)
        beyond = b.op("Max", beyond, b.constant([0], np.int64))
        begin = b.constant([0] * _SPATIAL + self._begin.tolist(), np.int64)
        end = b.op("Concat", b.constant([0] * _SPATIAL, np.int64), self._sum(beyond, self._end), axis=0)
        pads = b.op("Concat", begin, end, axis=0)
        data = b.op("Pad", node.input[0], pads)
        kept = {name: self._given[name] for name in ("kernel_shape", "strides", "dilations") if name in self._given}
        average = b.checks.name()
        b.nodes.append(helper.make_node("AveragePool", [data], [average], name=node.name, **kept))
        for axis in range(len(self._kernel)):
            average = b.op("Mul", average, b.op("Cast", self._share(axis), to=kind))
        b.nodes[-1].output[0] = node.output[0]
        return b.nodes

    def _share(self, axis: int) -> str:
        """K over the elements that each window has, [n, 1, ...] with a 1 for each axis behind, FP32.

        In vectors, and not by a pool over ones: where sizes are fixed, an engine with two streams would invert such a
        constant twice, in place.
        """
        b = self._b
        which, zero, one = (b.constant(number, np.int64) for number in (axis, 0, 1))
        kernel, stride, dilation = (
            b.constant(numbers[axis], np.int64) for numbers in (self._kernel, self._strides, self._dilations)
        )
        begins = b.op("Mul", b.op("Range", zero, b.op("Gather", self._windows, which), one), stride)
        left = b.op("Sub", b.op("Gather", self._padded, which), begins)
        taps = b.op("Div", b.op("Add", left, b.constant(self._dilations[axis] - 1, np.int64)), dilation)
        share = b.op("Div", b.number(kernel), b.number(b.op("Min", taps, kernel)))
        behind = list(range(1, len(self._kernel) - axis))
        return b.op("Unsqueeze", share, b.constant(behind, np.int64)) if behind else share

    def _counted(self) -> str:
        """How many windows there are: n of the algebra."""
        b = self._b
        strides, one = b.constant(self._strides, np.int64), b.constant([1], np.int64)
        steps = b.op("Div", self._sum(self._padded, self._strides - 1 - self._spans), strides)
        early = b.op("Less", b.op("Mul", steps, strides), self._sum(self._sizes, self._begin))
        return b.op("Where", early, b.op("Add", steps, one), steps)

    def _sum(self, name: str, numbers: np.ndarray) -> str:
        return self._b.op("Add", name, self._b.constant(numbers, np.int64))
