"""Write the lengths of recurrent layers out: OpenVINO 2026.4's CPU engine runs every sequence to its last step.

Algebra   With x [T, N, F] and a length l[n] for each sequence, ONNX asks for
          Y[t, n] = h(t, n) where t < l[n], else 0;  Y_h[n] = h(l[n] - 1, n) and Y_c[n] = c(l[n] - 1, n), or 0 where
          l[n] = 0 (ONNX is silent there; ONNX Runtime gives 0).
          A state depends on the steps before it alone, so all T steps may be run and what lies behind l[n] be masked:
          Y = Where(t < l, h, 0) and Y_h = sum over t of Where(t = l - 1, h, 0), a sum with one term.
          Backwards, a sequence begins at l[n] - 1: the layer runs forwards over x with the first l[n] steps turned
          round, x[l[n] - 1 - t, n], which gives Y_h as above, and Y once its steps are turned round again. (By
          GatherND: a ReverseSequence of the engine takes thirty times as long.)
          The last cell of an LSTM is kept: behind the end all features are 0 but one more, which is 1 there alone, and
          has the weight -B at the input gate and B at the forget gate. So i = sigmoid(-B) = 0 and f = sigmoid(B) = 1 in
          FP32, and c = f * c + i * g stays as it was. B is 1e4, far above the rest of a gate, W x + R h + P c + b,
          where x is 0 and |h| at most 1.
Pattern   GRU, LSTM or RNN with `sequence_lens`
Check     `reason_to_keep` finds nothing, and the engine does not heed the lengths itself (`is_heeded`); that
          0 <= l <= T is seen to by the guards, run by run
Rewrite   the layer without lengths, once for each direction, and the masks
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.graphs import all_graphs, all_nodes, copy_of, element_types, opset_of, read_anywhere
from engines.passes.guard_ops import Checks, Nodes

__all__ = [
    "LENGTHS", "WEIGHTS", "forget_unread", "has_lengths", "is_heeded", "reason_to_keep", "with_lengths_written_out",
]  # fmt: skip

LENGTHS = 4
"""Position of `sequence_lens` among the inputs of a recurrent layer."""
WEIGHTS = 1
_X, _PER_DIRECTION = 0, (1, 2, 3, 5, 6, 7)
"""Positions of the data, and of what has one part for each direction: W, R, B, initial_h, initial_c, P."""
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_SATURATING = 1e4
"""B above; FP16 holds it."""
_OLDEST_OPSET = 13
"""Split, Squeeze and ReduceSum take their axes as an input from there on."""


def with_lengths_written_out(model: ModelProto) -> ModelProto:
    """A copy without `sequence_lens` wherever nothing speaks against it; the model itself where there are none.

    The lengths must be in 0 to T, as the guards leave them: a foreign step would be read else.
    """
    if not any(map(has_lengths, all_nodes(model.graph))):
        return model
    copy, checks, opset = copy_of(model), Checks("bitserve.lengths"), opset_of(model) or 0
    read = read_anywhere(copy.graph)
    kinds = dict(kind for graph in all_graphs(copy.graph) for kind in element_types(graph))
    for graph in all_graphs(copy.graph):
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            if not has_lengths(node):
                graph.node.append(node)
                continue
            forget_unread(node, read)
            kind = kinds.get(node.input[WEIGHTS], 0)
            is_kept = bool(reason_to_keep(node, kind, opset)) or is_heeded(node)
            graph.node.extend([node] if is_kept else _Layer(node, kind, checks).written_out())
    return copy


def has_lengths(node: NodeProto) -> bool:
    """Whether it is a recurrent layer that is told how long each sequence is."""
    return node.op_type in _RECURRENT and len(node.input) > LENGTHS and bool(node.input[LENGTHS])


def forget_unread(node: NodeProto, read: Collection[str]) -> None:
    """Outputs that nobody reads lose their names: exports name a last cell that the model drops."""
    for position, name in enumerate(node.output):
        if name not in read:
            node.output[position] = ""


def reason_to_keep(node: NodeProto, kind: int, opset: int) -> str:
    """Why the lengths of a layer cannot be written out, or nothing. `kind` is the element type of its weights."""
    given = _attributes(node)
    if opset < _OLDEST_OPSET:
        return f"opset {opset} is older than {_OLDEST_OPSET}"
    if kind not in _FLOATS:
        return "the type of its weights is unknown"
    if given.get("layout", 0):
        return "it has layout 1"
    if given.get("direction") == b"bidirectional" and given.keys() & {"activation_alpha", "activation_beta"}:
        return "it has two directions, and an alpha or beta of activations"
    if _reads(node, 2) and "hidden_size" not in given:
        return "it does not give its hidden_size"
    return ""


def is_heeded(node: NodeProto) -> bool:
    """Whether the engine runs the layer step by step, and ends each sequence where it should.

    It does with clipped gates, and with functions other than its own, where the last cell could not be kept either.
    """
    given = _attributes(node)
    return _reads(node, 2) and (
        "clip" in given or any(gate != b"Sigmoid" for gate in given.get("activations", ())[::3])
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _of_directions(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The attributes of each direction, as those of a forward layer."""
    ways = 2 if given.get("direction") == b"bidirectional" else 1
    shared = {name: value for name, value in given.items() if name not in ("activations", "direction")}
    functions = given.get("activations") or []
    each = len(functions) // ways
    own = [functions[way * each : (way + 1) * each] for way in range(ways)]
    return [{**shared, "activations": part} if part else shared for part in own]


def _reads(node: NodeProto, output: int) -> bool:
    return len(node.output) > output and bool(node.output[output])


class _Layer:
    """One layer in the making; every method that adds nodes returns names."""

    def __init__(self, node: NodeProto, kind: int, checks: Checks) -> None:
        self._node, self._b = node, Nodes(checks)
        self._dtype = helper.tensor_dtype_to_np_dtype(kind)
        self._kind, self._given = kind, _attributes(node)
        self._zero = self._b.constant(0, self._dtype)
        self._steps, self._places = self._size(0), ""
        self._lengths = self._b.op("Cast", node.input[LENGTHS], to=TensorProto.INT64)

    def written_out(self) -> list[NodeProto]:
        """Nodes with the outputs of the layer."""
        b, node = self._b, self._node
        halves = _of_directions(self._given)
        backwards = [False, True] if len(halves) == 2 else [self._given.get("direction") == b"reverse"]
        parts = self._parts(len(halves))
        self._live, self._last = self._masks()
        done = [self._run(*way) for way in zip(halves, backwards, parts, strict=True)]
        for position, axis in enumerate((1, 0, 0)):
            if _reads(node, position):
                names = [outputs[position] for outputs in done]
                b.nodes.append(helper.make_node("Concat", names, [node.output[position]], axis=axis))
        return b.nodes

    def _parts(self, ways: int) -> list[list[str]]:
        """Inputs of each direction; what is not given is an empty name."""
        inputs = [[*self._node.input, *[""] * 8][:8] for _ in range(ways)]
        for position in _PER_DIRECTION:
            name = inputs[0][position]
            if ways == 2 and name:
                names = [self._b.checks.name() for _ in range(ways)]
                equal = self._b.constant([1, 1], np.int64)
                self._b.nodes.append(helper.make_node("Split", [name, equal], names, axis=0))
                inputs[0][position], inputs[1][position] = names
        return inputs

    def _size(self, axis: int) -> str:
        """Of the data [T, N, F] along one axis, a scalar."""
        return self._b.op("Gather", self._b.op("Shape", self._node.input[_X]), self._b.constant(axis, np.int64))

    def _masks(self) -> tuple[str, str]:
        """Which steps a sequence has, and which is its last: [T, 1, N, 1], as Y is [T, 1, N, hidden]."""
        b = self._b
        step, lengths = self._step([1, 2, 3]), b.op("Unsqueeze", self._lengths, b.constant([0, 1, 3], np.int64))
        return b.op("Less", step, lengths), b.op("Equal", step, b.op("Sub", lengths, b.constant(1, np.int64)))

    def _step(self, axes: list[int]) -> str:
        """0 to T - 1, with new axes."""
        b = self._b
        step = b.op("Range", b.constant(0, np.int64), self._steps, b.constant(1, np.int64))
        return b.op("Unsqueeze", step, b.constant(axes, np.int64))

    def _run(self, attributes: dict[str, Any], backwards: bool, inputs: list[str]) -> list[str]:
        """Y, Y_h and Y_c of one direction, as far as they are read."""
        b, node = self._b, self._node
        inputs[LENGTHS] = ""
        if backwards:
            inputs[_X] = self._reversed(inputs[_X])
        if _reads(node, 2):
            inputs[_X], inputs[WEIGHTS] = self._keeping_the_cell(inputs[_X], inputs[WEIGHTS])
        while not inputs[-1]:
            inputs.pop()
        made = [b.checks.name(), "", b.checks.name() if _reads(node, 2) else ""]
        name = f"{node.name}.backwards" if backwards and node.name else node.name
        b.nodes.append(helper.make_node(node.op_type, inputs, made if made[2] else made[:1], name=name, **attributes))
        return [
            self._masked(made[0], backwards) if _reads(node, 0) else "",
            self._final(made[0]) if _reads(node, 1) else "",
            self._ended(made[2]) if _reads(node, 2) else "",
        ]

    def _turned(self) -> str:
        """For [t, n] the place of what stands there the other way round: [T, N, 2]."""
        b = self._b
        step, one = self._step([1]), b.constant(1, np.int64)
        lengths = b.op("Unsqueeze", self._lengths, b.constant([0], np.int64))
        turned = b.op("Sub", b.op("Sub", lengths, one), step)
        turned = b.op("Where", b.op("Less", step, lengths), turned, step)
        row = b.op("Range", b.constant(0, np.int64), self._size(1), one)
        row = b.op("Expand", row, b.op("Shape", turned))
        last = b.constant([2], np.int64)
        return b.op("Concat", b.op("Unsqueeze", turned, last), b.op("Unsqueeze", row, last), axis=2)

    def _reversed(self, name: str) -> str:
        """The first l[n] steps of [T, N, ...] the other way round."""
        if not self._places:
            self._places = self._turned()
        return self._b.op("GatherND", name, self._places)

    def _masked(self, states: str, backwards: bool) -> str:
        b = self._b
        if backwards:
            one = b.constant([1], np.int64)
            states = b.op("Unsqueeze", self._reversed(b.op("Squeeze", states, one)), one)
        return b.op("Where", self._live, states, self._zero)

    def _final(self, states: str) -> str:
        b = self._b
        return b.op("ReduceSum", b.op("Where", self._last, states, self._zero), b.constant([0], np.int64), keepdims=0)

    def _ended(self, cell: str) -> str:
        """[1, N, hidden]; 0 of a sequence that has no steps."""
        b = self._b
        length = b.op("Unsqueeze", self._lengths, b.constant([0, 2], np.int64))
        return b.op("Where", b.op("Less", b.constant(0, np.int64), length), cell, self._zero)

    def _keeping_the_cell(self, x: str, weights: str) -> tuple[str, str]:
        """Data [T, N, F + 1] and weights [1, 4 * hidden, F + 1]; the gates of ONNX are i, o, f, c."""
        b = self._b
        live = b.op("Squeeze", self._live, b.constant([1], np.int64))
        over = b.op("Cast", b.op("Not", live), to=self._kind)
        x = b.op("Concat", b.op("Where", live, x, self._zero), over, axis=2)
        column = np.repeat([-_SATURATING, 0, _SATURATING, 0], self._given["hidden_size"]).reshape(1, -1, 1)
        return x, b.op("Concat", weights, b.constant(column, self._dtype), axis=2)
