"""Make a graph count what the CPU engine would answer wrongly instead of refusing it.

OpenVINO 2026.4 answers zeros for a Gather outside its table, reads and writes foreign memory for the other look-ups,
and cuts what becomes a 64-bit integer to 32 bits, all without a word. ONNX calls each an error, or answers right. So
a count of offenders is computed beside each such node, and all counts become one more output: a run in which any is
not zero has failed. Look-ups that touch memory get their bad indices replaced by 0 as well, so nothing foreign is read.

Loop, Scan and If are followed: a count inside a body leaves it as one more output of its node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.frontend.ranges import INDEX_INPUTS, checked_lookups, from_shapes, never_empty
from engines.graphs import opset_of, read_anywhere
from engines.manifest import GUARD_OUTPUT
from engines.passes.guard_empty import guard_axes, guard_compress, guard_regions, guard_turns, needed_axes
from engines.passes.guard_integers import WIDE, guard_cast, guard_integers, must_be_exact, reads
from engines.passes.guard_lengths import are_full, guard_lengths, time_axis
from engines.passes.guard_limits import COUNTED, FARTHEST, KEPT, guard_count, keep_in_reach
from engines.passes.guard_ops import Checks, Nodes
from engines.passes.guard_scales import guard_scales, may_keep_a_size
from engines.passes.guard_sizes import SIZE_INPUT, guard_size, range_forwards
from engines.passes.guard_stored import TAKES_WIDE, StoredWide
from engines.passes.sequence_lens import LENGTHS, WEIGHTS, forget_unread, has_lengths, reason_to_keep

__all__ = ["with_guards"]

_LONG_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BFLOAT16})  # FP16 ends at 65504
_SCAN_LISTS = ("scan_output_axes", "scan_output_directions")
"""One number for each scan output of a Scan, where they are given; 0 is the default of both."""


def with_guards(model: onnx.ModelProto, *, on_gpu: bool = False) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy with the output `GUARD_OUTPUT`, and what each of its elements counts, in words for a client. `on_gpu`: no
    look-up at all may leave its table, for a GPU that reads foreign memory is lost to the process.

    Without anything to guard: the model itself, and nothing. Raises ModelRefused where a guard cannot be made.
    """
    copy = _inferred(model)
    pass_ = _Pass(copy, on_gpu=on_gpu)
    counts, said = pass_.guard(copy.graph, {}), pass_.said
    if not counts:
        return (copy if pass_.changed else model), ()
    pass_.checks.join(copy.graph, counts, GUARD_OUTPUT)
    copy.graph.output.append(helper.make_tensor_value_info(GUARD_OUTPUT, TensorProto.FLOAT, [len(counts)]))
    return copy, tuple(said)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes and types that can be inferred; without, where inference fails."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # an inferred shape only saves a guard its Shape node
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy


_Guarded = tuple[list[NodeProto], list[NodeProto], list[tuple[str, str]]]
_TOO_LARGE = "asks for too large a size, or less than nothing"
_INSIDE = "looks up an index outside its table, makes an integer beyond 32 bits, or asks for too much"


def _before(nodes: list[NodeProto], count: str, what: str) -> _Guarded:
    return nodes, [], [(count, what)]


class _Value:
    """What is known of a tensor: element type (0 = unknown), dimensions (None = unknown), stored contents."""

    __slots__ = ("dims", "kind", "stored")

    def __init__(self, kind: int, dims: tuple[int | None, ...] | None, stored: TensorProto | None = None) -> None:
        self.kind, self.dims, self.stored = kind, dims, stored


class _Pass:
    def __init__(self, model: onnx.ModelProto, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self.said: list[str] = []
        self.changed = False
        self.checks = Checks()
        self._stored_wide = StoredWide(self.checks)
        self._checked = checked_lookups(model)
        self._from_shapes = from_shapes(model)
        self._never_empty = never_empty(model)
        self._top = model.graph
        self._opset, self._read = opset_of(model) or 0, read_anywhere(model.graph)

    def guard(self, graph: GraphProto, outer: Mapping[str, _Value]) -> list[str]:
        """Add guards to a graph in place; names of the scalar counts, one for each entry of `said`."""
        known = {**outer, **dict(_values(graph))}
        stored = lambda name: known[name].stored if name in known else None  # noqa: E731
        counts: list[str] = []
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            before, after, found = self._guards_of(node, known)
            taken, uses = self._stored_wide.uses(node, stored, in_body=graph is not self._top)
            before, found = [*before, *taken], [*found, *((use, TAKES_WIDE) for use in uses)]
            graph.node.extend([*before, node, *after])
            self.changed |= bool(before or after)
            counts += [count for count, _ in found]
            if graph is self._top:
                self.said += [f"{node.op_type} {node.name or node.output[0]!r} {what}" for _, what in found]
        if graph is not self._top:
            for value in graph.output:
                nodes, uses = self._stored_wide.given(value.name, stored)
                graph.node.extend(nodes)
                counts += uses
        else:
            for value in graph.output:
                if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
                    nodes, count = self.checks.beyond_fp32(value.name)
                    graph.node.extend(nodes)
                    counts.append(count)
                    self.said.append(f"output {value.name!r} is beyond FP32, in which the engine computes")
        return counts

    def _guards_of(self, node: NodeProto, known: Mapping[str, _Value]) -> _Guarded:
        """Nodes to run before and after it; names of its counts, and what each counts."""
        if node.op_type in INDEX_INPUTS and self._needs_check(node, known):
            return _before(*self._check_index(node, known), "looks up an index outside its table")
        if node.op_type == "Cast" and self._cuts(node, known):
            nodes, counts = guard_cast(self.checks, node)
            return nodes, [], counts
        variable = self._inexact(node, known)
        if variable:
            return guard_integers(self.checks, node, variable)
        if has_lengths(node):
            nodes, count, why = self._check_lengths(node, known)
            if count:
                return _before(nodes, count, why)
        number = _named(node, KEPT)
        if number and not (number in known and _is_in_reach(known[number].stored)):
            return keep_in_reach(self.checks, node), [], []
        if _named(node, COUNTED) not in ("", *self._from_shapes):
            nodes, count, why = guard_count(self.checks, node)
            return _before(nodes, count, why)
        axes = needed_axes(node)
        if axes is not None and self._may_be_empty(node, axes, known):
            return _before(*guard_axes(self.checks, node, axes), "takes something out of an empty tensor")
        if node.op_type == "Compress" and node.input[1] not in self._from_shapes:
            return _before(*guard_compress(self.checks, node), "has a condition longer than what it selects from")
        if node.op_type == "MaxRoiPool" and node.input[1] not in self._from_shapes:
            return _before(*guard_regions(self.checks, node), "has a region of an image that is not in the batch")
        before, asked = self._check_size(node, known)
        if may_keep_a_size(node, self._scales(node, known)):
            nodes, count = guard_scales(self.checks, node)
            found = [(asked, _TOO_LARGE), (count, "leaves the size of an axis as it is, but not its scale")]
            return [*before, *nodes], [], [pair for pair in found if pair[0]]
        turns, after, count = self._guard_bodies(node, known)
        found = [(asked, _TOO_LARGE), (count, _INSIDE)]
        return [*before, *turns], after, [pair for pair in found if pair[0]]

    def _needs_check(self, node: NodeProto, known: Mapping[str, _Value]) -> bool:
        """Not where the index was checked on arrival, or is a constant that fits whatever the table is."""
        if node.output[0] in self._checked:
            return False
        index = known.get(node.input[INDEX_INPUTS[node.op_type]])
        if index is None or index.stored is None:
            return True
        low, high = _extent(index.stored)
        if (low, high) in ((0, 0), (-1, -1), (-1, 0)) and node.input[0] in self._never_empty:
            return False  # every other table has a first and a last row
        if node.op_type != "Gather":
            return True
        rows = _dim(known.get(node.input[0]), _axis(node))
        is_shape = node.input[0] in self._from_shapes  # its length is the rank: the reference has looked it up
        return not is_shape and not (rows is not None and -rows <= low and high < rows)

    def _check_lengths(self, node: NodeProto, known: Mapping[str, _Value]) -> tuple[list[NodeProto], str, str]:
        """Nodes to run before it, the count, and why. Nothing, and no lengths any more, where all are known to be T."""
        lengths = known.get(node.input[LENGTHS])
        if lengths is not None and are_full(lengths.stored, _dim(known.get(node.input[0]), time_axis(node))):
            node.input[LENGTHS] = ""
            self.changed = True
            return [], "", ""
        kind = known.get(node.input[WEIGHTS], _Value(0, None)).kind
        forget_unread(node, self._read)
        reason = reason_to_keep(node, kind, self._opset)
        nodes, count = guard_lengths(self.checks, node, full=bool(reason))
        if reason:
            return nodes, count, f"ends a sequence before its last step, which the engine cannot: {reason}"
        return nodes, count, "has a length below 0 or beyond the steps there are, or not one for each sequence"

    def _check_size(self, node: NodeProto, known: Mapping[str, _Value]) -> tuple[list[NodeProto], str]:
        """Where a size is neither stored nor computed from shapes, which are bounded by the request itself."""
        given = [node.input[p] for p in SIZE_INPUT.get(node.op_type, ()) if p < len(node.input) and node.input[p]]
        loose = [n for n in given if n not in self._from_shapes and not (n in known and known[n].stored)]
        if not loose:
            fixed = all(name in known and known[name].stored for name in given)
            return (range_forwards(self.checks, node), "") if node.op_type == "Range" and not fixed else ([], "")
        kind = known.get(given[0], _Value(0, None)).kind
        if not kind:
            raise ModelRefused(f"{node.op_type} {node.name or node.output[0]!r}: the type of its size is unknown")
        return guard_size(self.checks, node, kind)

    def _scales(self, node: NodeProto, known: Mapping[str, _Value]) -> TensorProto | None:
        """Of a Resize, where they are stored."""
        name = node.input[2] if node.op_type == "Resize" and len(node.input) > 2 else ""
        return known[name].stored if name in known else None

    def _cuts(self, node: NodeProto, known: Mapping[str, _Value]) -> bool:
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        source = known.get(node.input[0])
        is_float = source is not None and source.kind in _LONG_FLOATS
        return is_float and to in WIDE and node.input[0] not in self._from_shapes

    def _inexact(self, node: NodeProto, known: Mapping[str, _Value]) -> list[str]:
        """The data inputs by which the engine's integers may leave the range in which they are exact."""
        data = reads(node)
        if not must_be_exact(node, [known[name].kind if name in known else 0 for name in data]):
            return []
        return [n for n in data if n not in self._from_shapes and not (n in known and known[n].stored)]

    def _may_be_empty(self, node: NodeProto, axes: list[int] | str, known: Mapping[str, _Value]) -> bool:
        table = node.input[0]
        if table in self._never_empty or table in self._from_shapes:
            return False
        if isinstance(axes, str):
            return True
        found = known.get(table)
        if found is None or found.dims is None:
            return True
        return not all(_dim(found, axis) for axis in axes or range(len(found.dims)))

    def _check_index(self, node: NodeProto, known: Mapping[str, _Value]) -> tuple[list[NodeProto], str]:
        position = INDEX_INPUTS[node.op_type]
        table, index = node.input[0], node.input[position]
        found = known.get(index, _Value(0, None))
        if found.kind not in (TensorProto.INT32, TensorProto.INT64):
            raise ModelRefused(f"{node.op_type} {node.name or node.output[0]!r}: the type of its indices is unknown")
        axes = self._indexed_axes(node, found)
        dims = [_dim(known.get(table), axis) for axis in axes]
        nodes, bad, count = self.checks.outside(table, index, found.kind, axes, dims, scalar="ND" not in node.op_type)
        if self._on_gpu or node.op_type != "Gather":
            replaced = self.checks.name()
            zero, constant = self.checks.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(found.kind)))
            nodes += [constant, helper.make_node("Where", [bad, zero, index], [replaced])]
            node.input[position] = replaced
        return nodes, count

    def _indexed_axes(self, node: NodeProto, index: _Value) -> list[int]:
        """The axes of the table that an index (its last dimension, for the ND kind) walks along."""
        if "ND" not in node.op_type:
            return [_axis(node)]
        depth = index.dims[-1] if index.dims else None
        if depth is None:
            raise ModelRefused(
                f"{node.op_type} {node.name or node.output[0]!r}: the last dimension of its indices is variable; "
                "expected a fixed one"
            )
        first = next((a.i for a in node.attribute if a.name == "batch_dims"), 0)
        return list(range(first, first + depth))

    def _guard_bodies(
        self, node: NodeProto, known: Mapping[str, _Value]
    ) -> tuple[list[NodeProto], list[NodeProto], str]:
        """Nodes to run before and after it, and the name of the count of all of its bodies, or nothing."""
        bodies = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
        counts = [self.guard(body, known) for body in bodies]
        before, ran = self._turns(node, known)
        b = Nodes(self.checks)
        idle = ""
        if ran and len(bodies[0].output) > len(node.input) - 1:  # what a turn adds to; else it is what came in
            idle = b.count(b.op("Not", ran))
        if not any(counts):
            return before, b.nodes, idle
        if len(node.output) != _declared(node, bodies):
            raise ModelRefused(f"{node.op_type} {node.name!r} leaves out some of its outputs; expected all of them")
        for body, inside in zip(bodies, counts, strict=True):
            body.output.append(helper.make_tensor_value_info(self.checks.total(body, inside), TensorProto.FLOAT, []))
        for attribute in node.attribute:
            if attribute.name in _SCAN_LISTS:
                attribute.ints.append(0)
        left = self.checks.name()
        node.output.append(left)
        count = b.op("ReduceSum", left, keepdims=0)
        if ran:  # without a turn, the engine shows the counts of an earlier run
            count = b.op("ReduceSum", b.op("Where", ran, count, b.constant(0)), keepdims=0)
        return before, b.nodes, b.op("Add", count, idle) if idle else count

    def _turns(self, node: NodeProto, known: Mapping[str, _Value]) -> tuple[list[NodeProto], str]:
        """For a Loop that may make no turn: nodes to run before it, and the name of whether it made one."""
        if node.op_type != "Loop":
            return [], ""
        given = [name for name in node.input[:2] if name]
        stored = [known[name].stored for name in given if name in known]
        if len(stored) == len(given) and all(t is not None and numpy_helper.to_array(t).min() > 0 for t in stored):
            return [], ""
        return guard_turns(self.checks, node)


def _declared(node: NodeProto, bodies: list[GraphProto]) -> int:
    """Outputs that the node has by its bodies: of a Loop, the first is the condition, which stays inside."""
    return len(bodies[0].output) - (node.op_type == "Loop")


def _values(graph: GraphProto) -> Iterator[tuple[str, _Value]]:
    for info in [*graph.value_info, *graph.input, *graph.output]:
        kind = info.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        yield info.name, _Value(kind.elem_type, dims if kind.HasField("shape") else None)
    for tensor in graph.initializer:
        yield tensor.name, _Value(tensor.data_type, tuple(tensor.dims), tensor)
    for node in graph.node:
        tensor_ = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor_ is not None:
            yield node.output[0], _Value(tensor_.data_type, tuple(tensor_.dims), tensor_)


def _extent(stored: TensorProto) -> tuple[int, int]:
    """Smallest and largest element; an empty tensor indexes nothing."""
    if not math.prod(stored.dims):
        return 0, 0
    array = numpy_helper.to_array(stored)
    return int(array.min()), int(array.max())


def _is_in_reach(stored: TensorProto | None) -> bool:
    low, high = (-1, 0) if stored is None else _extent(stored)
    return 0 <= low <= high < FARTHEST


def _named(node: NodeProto, positions: Mapping[str, int]) -> str:
    """The input at its operator's position, if it has one."""
    position = positions.get(node.op_type, len(node.input))
    return node.input[position] if position < len(node.input) else ""


def _axis(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def _dim(value: _Value | None, axis: int) -> int | None:
    if value is None or value.dims is None or not -len(value.dims) <= axis < len(value.dims):
        return None
    return value.dims[axis]
