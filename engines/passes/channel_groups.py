"""Which channels of a network hang together, so that they can be removed only as one.

A layer (Conv, Gemm, MatMul) makes channels; what follows works on each of them alone (an activation, a pooling, a
depthwise convolution, a product by a constant) until the next layers read them. A residual Add joins the channels of
all that it adds: removing one removes it from each of their layers. A group is such a set of channels with all places
where it has an axis. It is closed, and cannot lose channels, where a channel comes from, or goes, where this module
does not follow it: an output, an input, a Concat, a softmax over channels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference

from engines.graphs import read_anywhere, reads_of, without_weights
from engines.passes.weighted import Weighted, attribute_of, weighted_layers

__all__ = ["Cut", "Group", "entries", "find_groups"]

_ALONE = frozenset({
    "Abs", "BatchNormalization", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu",
    "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
})  # fmt: skip
_TOGETHER = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"})
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})
_A_CHANNEL_EACH = {"BatchNormalization": 4, "InstanceNormalization": 2}


class Cut(NamedTuple):
    """An axis of a stored tensor, as one node reads it, that has `span` entries for each channel of a group.

    Of a `shape` (what a Reshape reads), the entry at `axis` is the number of channels times `span`.
    """

    node: str
    input: int
    axis: int
    span: int
    is_shape: bool = False


class Group:
    """Channels that are removed together. `closed` says why they cannot be."""

    def __init__(self, channels: int) -> None:
        self.channels, self.closed = channels, ""
        self.makers: list[str] = []
        """Layers that make the channels."""
        self.consumers: list[tuple[Weighted, int]] = []
        """Layers that read them, and how many inputs of theirs each channel is."""
        self.cuts: list[Cut] = []
        self.depthwise: list[str] = []
        self._into: Group | None = None

    def root(self) -> Group:
        """The group that this one has become a part of."""
        return self if self._into is None else self._into.root()

    def close(self, reason: str) -> None:
        self.root().closed = self.root().closed or reason

    def join(self, other: Group) -> None:
        one, two = self.root(), other.root()
        if one is two:
            return
        if one.channels != two.channels:
            one.close("channels of different numbers meet")
            two.close("channels of different numbers meet")
            return
        two._into = one
        one.closed = one.closed or two.closed
        for mine, theirs in ((one.makers, two.makers), (one.depthwise, two.depthwise)):
            mine.extend(theirs)
        one.consumers.extend(two.consumers)
        one.cuts.extend(two.cuts)


class _Carried(NamedTuple):
    """Where a value has the channels of a group: `span` entries for each along `axis`."""

    group: Group
    axis: int
    span: int


def find_groups(model: ModelProto) -> list[Group]:
    """All groups of the top graph, closed ones included, in the order of their first layers."""
    finder = _Finder(model)
    for node in model.graph.node:
        finder.visit(node)
    return finder.result()


class _Finder:
    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._dims = _dims(model)
        self._read = read_anywhere(model.graph)
        self._layers = {layer.node.name: layer for layer in weighted_layers(model.graph)}
        self._carried: dict[str, _Carried] = {}
        self._groups: list[Group] = []

    def result(self) -> list[Group]:
        for value in self._graph.output:
            if value.name in self._carried:
                self._carried[value.name].group.close(f"its channels are in output {value.name!r}")
        roots = [group for group in self._groups if group.root() is group]
        for group in roots:
            if not group.consumers:
                group.close("no layer reads its channels")
        return roots

    def visit(self, node: NodeProto) -> None:
        layer = self._layers.get(node.name)
        if layer and not layer.is_depthwise:
            self._visit_layer(node, layer)
            return
        touched = [name for name in reads_of(node) if name in self._carried]
        if not touched:
            return
        out = self._follow(node, layer)
        if out is None or set(touched) - set(node.input):
            self._close(touched, f"it is not followed through {node.op_type} {node.name!r}")
        else:
            self._carried[node.output[0]] = out

    def _close(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self._carried[name].group.close(reason)

    def _visit_layer(self, node: NodeProto, layer: Weighted) -> None:
        self._close([name for name in node.input[1:] if name in self._carried], f"it is a weight of {node.name!r}")
        read = self._carried.get(node.input[0])
        if read is not None:
            self._consume(node, layer, read)
        bias = node.input[2] if len(node.input) > 2 else ""
        if layer.groups > 1 or (bias and bias not in self._stored):
            return
        rank = len(layer.shape) if node.op_type == "Conv" else len(self._dims.get(node.output[0], []))
        if not rank:
            return
        group = Group(layer.shape[layer.out_axis])
        group.makers.append(node.name)
        group.cuts.append(Cut(node.name, 1, layer.out_axis, 1))
        axis = layer.channel_axis % rank
        if bias and node.op_type == "Conv":
            group.cuts.append(Cut(node.name, 2, 0, 1))
        elif bias:
            group.cuts.extend(self._constant(node, 2, axis, group.channels, 1, rank) or ())
        self._groups.append(group)
        self._carried[node.output[0]] = _Carried(group, axis, 1)

    def _consume(self, node: NodeProto, layer: Weighted, read: _Carried) -> None:
        group = read.group.root()
        rank = len(self._dims.get(node.input[0], []))
        axis = 1 if node.op_type == "Conv" else rank - 1
        fits = layer.shape[layer.in_axis] == group.channels * read.span and (node.op_type != "Conv" or read.span == 1)
        if layer.groups > 1 or read.axis != axis or not fits or attribute_of(node, "transA", 0):
            group.close(f"it is not followed into {node.op_type} {node.name!r}")
            return
        group.consumers.append((layer, read.span))
        group.cuts.append(Cut(node.name, 1, layer.in_axis, read.span))

    def _follow(self, node: NodeProto, layer: Weighted | None) -> _Carried | None:
        """The output's channels; None where the node is not followed."""
        if node.domain not in ("", "ai.onnx") or self._read.intersection(node.output[1:]):
            return None
        if node.op_type in _TOGETHER:
            return self._together(node)
        read = self._carried.get(node.input[0])
        if read is None or any(name not in self._stored for name in node.input[1:] if name):
            return None
        rank = len(self._dims.get(node.input[0], []))
        if layer is not None:
            return self._depthwise(node, layer, read)
        if node.op_type in _ALONE:
            return self._alone(node, read)
        if node.op_type in _POOLS:
            return read if read.axis == 1 and read.span == 1 else None
        if not rank:
            return None
        if node.op_type in _REDUCTIONS or node.op_type in ("Squeeze", "Unsqueeze"):
            return self._axes_gone(node, read, rank)
        if node.op_type == "Transpose":
            perm = attribute_of(node, "perm", list(range(rank))[::-1])
            return read._replace(axis=perm.index(read.axis))
        if node.op_type == "Pad":
            return self._padded(node, read, rank)
        if node.op_type == "Resize":
            return self._resized(node, read)
        if node.op_type in ("Flatten", "Reshape"):
            return self._flattened(node, read)
        return None

    def _alone(self, node: NodeProto, read: _Carried) -> _Carried | None:
        count = _A_CHANNEL_EACH.get(node.op_type, 0)
        if attribute_of(node, "training_mode", 0) or (count and read.axis != 1):
            return None
        read.group.root().cuts.extend(Cut(node.name, i, 0, read.span) for i in range(1, count + 1))
        return read

    def _depthwise(self, node: NodeProto, layer: Weighted, read: _Carried) -> _Carried | None:
        group = read.group.root()
        if (read.axis, read.span) != (1, 1) or layer.shape[0] != group.channels or layer.groups != group.channels:
            return None
        group.cuts.extend(Cut(node.name, i, 0, 1) for i in range(1, len(node.input)) if node.input[i])
        group.depthwise.append(node.name)
        return read

    def _together(self, node: NodeProto) -> _Carried | None:
        carried = {name: self._carried[name] for name in node.input if name in self._carried}
        first, *others = carried.values()
        ranks = {len(self._dims.get(name, [])) for name in carried}
        if len(ranks) != 1 or 0 in ranks or any(one[1:] != first[1:] for one in others):
            return None
        rank, cuts = ranks.pop(), []
        for index, name in enumerate(node.input):
            if name in carried:
                continue
            found = self._constant(node, index, first.axis, first.group.root().channels, first.span, rank)
            if found is None:
                return None
            cuts += found
        for one in others:
            first.group.join(one.group)
        first.group.root().cuts.extend(cuts)
        return first

    def _constant(
        self, node: NodeProto, index: int, axis: int, channels: int, span: int, rank: int
    ) -> list[Cut] | None:
        """What is to be cut of an input that is broadcast against channels at `axis`; None where it is no constant."""
        name = node.input[index]
        dims = list(self._stored[name].dims) if name in self._stored else self._dims.get(name)
        if dims is None or len(dims) > rank:
            return None
        own = axis - (rank - len(dims))
        if own < 0 or dims[own] == 1:
            return []
        is_each = name in self._stored and dims[own] == channels * span
        return [Cut(node.name, index, own, span)] if is_each else None

    def _numbers(self, node: NodeProto, index: int) -> list[int] | None:
        name = node.input[index] if len(node.input) > index else ""
        return numpy_helper.to_array(self._stored[name]).reshape(-1).tolist() if name in self._stored else None

    def _axes_gone(self, node: NodeProto, read: _Carried, rank: int) -> _Carried | None:
        axes = self._numbers(node, 1)
        added = node.op_type == "Unsqueeze"
        if not axes:  # all of them, or those that happen to have one entry
            return None
        whole = rank + len(axes) if added else rank
        gone = sorted(axis % whole for axis in axes)
        if added:
            kept = [axis for axis in range(whole) if axis not in gone]
            return read._replace(axis=kept[read.axis])
        if read.axis in gone:
            return None
        if node.op_type in _REDUCTIONS and attribute_of(node, "keepdims", 1):
            return read
        return read._replace(axis=read.axis - sum(axis < read.axis for axis in gone))

    def _padded(self, node: NodeProto, read: _Carried, rank: int) -> _Carried | None:
        pads, axes = self._numbers(node, 1), self._numbers(node, 3) or list(range(rank))
        if pads is None:
            return None
        at = {axis % rank: pads[i] or pads[i + len(axes)] for i, axis in enumerate(axes)}
        return None if at.get(read.axis) else read

    def _resized(self, node: NodeProto, read: _Carried) -> _Carried | None:
        scales = self._numbers(node, 2)
        mode = attribute_of(node, "coordinate_transformation_mode", b"half_pixel")
        is_plain = not attribute_of(node, "axes", []) and mode != b"tf_crop_and_resize"
        return read if scales and is_plain and scales[read.axis] == 1 else None

    def _flattened(self, node: NodeProto, read: _Carried) -> _Carried | None:
        """[N, channels, ...] to [N, channels * ...]: each channel becomes neighbours."""
        dims, group = self._dims.get(node.input[0], []), read.group.root()
        if read.axis != 1 or len(dims) < 2 or not all(isinstance(size, int) for size in dims[1:]):
            return None
        span = read.span * math.prod(size for size in dims[2:] if isinstance(size, int))
        if node.op_type == "Flatten":
            return _Carried(group, 1, span) if attribute_of(node, "axis", 1) == 1 else None
        shape = self._numbers(node, 1)
        if not shape or len(shape) != 2 or attribute_of(node, "allowzero", 0):
            return None
        if shape[0] not in (0, -1, dims[0]) or shape[1] not in (-1, group.channels * span):
            return None
        if shape[1] != -1:
            group.cuts.append(Cut(node.name, 1, 1, span, is_shape=True))
        return _Carried(group, 1, span)


def _dims(model: ModelProto) -> dict[str, list[int | str]]:
    """Sizes (numbers, else names or nothing) of every value whose rank is known."""
    bare, _ = without_weights(model)
    with contextlib.suppress(Exception):  # what is declared is known without inference too
        bare = shape_inference.infer_shapes(bare, data_prop=True)
    return dict(_declared(bare))


def _declared(model: ModelProto) -> Iterator[tuple[str, list[int | str]]]:
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and kind.elem_type != TensorProto.UNDEFINED:
            yield value.name, [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]


def entries(kept: np.ndarray, span: int) -> np.ndarray:
    """Where the channels `kept` are along an axis with `span` entries for each."""
    return (kept[:, None] * span + np.arange(span)).reshape(-1)
