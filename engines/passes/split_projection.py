"""Split the input projection of recurrent layers out, so that it can be quantized; the recurrence stays float.

Algebra   x [T, N, F] meets W in every step, h in R. What x gives is known beforehand, for all steps of both directions:
          P[t, n] = W x[t, n] + b, one product with W transposed [F, directions * gates * hidden]; b = Wb + Rb, summed
          in float64 and rounded once. The steps are then, with P's part of each gate and * an elementwise product,
          LSTM   i, o, f = sigmoid(P + R h);  g = tanh(P + R h);  c' = f * c + i * g;  h' = o * tanh(c')
          GRU    z, r = sigmoid(P + R h);  h' = g + z * (h - g), which is (1 - z) * g + z * h, with
                 g = tanh(P + R (r * h)), or tanh(P + r * (R h + Rb)) with linear_before_reset, whose Rb is not in b
Pattern   LSTM or GRU
Check     W, R and B are stored, in FP32; none of: sequence_lens, peepholes, clip, input_forget, layout 1, functions
          other than ONNX's own; the layer is not in a body, where nothing is quantized
Rewrite   MatMul and Add for P, one Scan for the steps of both directions, all named after the layer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engines.graphs import all_graphs, copy_of, drop_stored_inputs, read_anywhere

__all__ = ["split_projections"]

_GATES = {"LSTM": 4, "GRU": 3}
_STATES = {"LSTM": "hc", "GRU": "h"}
_FUNCTIONS = {"LSTM": [b"sigmoid", b"tanh", b"tanh"], "GRU": [b"sigmoid", b"tanh"]}
_X, _W, _R, _B, _LENGTHS, _FIRST_STATE, _PEEPHOLES = 0, 1, 2, 3, 4, 5, 7


def split_projections(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with every input projection that can be split out; the note says how many, and why a layer was left.

    `model` is canonical: opset 21, constants stored, nodes named. It is the same object where nothing is split.
    """
    copy, split, left = copy_of(model), 0, dict[str, str]()
    drop_stored_inputs(copy.graph)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    left.update((node.name, "it is in a body") for body in list(all_graphs(copy.graph))[1:] for node in _layers(body))
    taken, nodes = _names(copy.graph), list(copy.graph.node)
    layers = {node.name for node in _layers(copy.graph)}
    del copy.graph.node[:]
    for node in nodes:
        reason = _reason_to_leave(node, stored) if node.name in layers else "no layer"
        if reason:
            copy.graph.node.append(node)
            left.update({node.name: reason} if node.name in layers else {})
            continue
        layer = _Layer(node, stored, _free(node.name, taken))
        copy.graph.node.extend(layer.split())
        copy.graph.initializer.extend(layer.stored)
        split += 1
    said = [f"the input projections of {split} recurrent layers are split out; the recurrence stays float"] * bool(
        split
    )
    note = "; ".join([*said, *(f"{name} is left: {reason}" for name, reason in left.items())])
    if not split:
        return model, note
    _drop_unread(copy.graph)
    return copy, note


def _layers(graph: GraphProto) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type in _GATES and node.domain in ("", "ai.onnx")]


def _names(graph: GraphProto) -> set[str]:
    """Of all values and nodes."""
    names = {tensor.name for one in all_graphs(graph) for tensor in (*one.initializer, *one.input)}
    for one in all_graphs(graph):
        names.update(name for node in one.node for name in (node.name, *node.input, *node.output))
    return names


def _free(wanted: str, taken: set[str]) -> str:
    """A prefix that no name begins with."""
    while any(name.startswith(f"{wanted}.") for name in taken):
        wanted += "_"
    return wanted


def _drop_unread(graph: GraphProto) -> None:
    read = read_anywhere(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _reason_to_leave(node: NodeProto, stored: Mapping[str, TensorProto]) -> str:
    """Why the projection of a layer cannot be split out, or nothing."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    names = [*node.input, *[""] * 8][:8]
    for position, name in ((_W, "W"), (_R, "R"), (_B, "B")):
        if (names[position] or position != _B) and names[position] not in stored:
            return f"{name} is not stored"
        if names[position] and stored[names[position]].data_type != TensorProto.FLOAT:
            return f"{name} is not FP32"
    if names[_LENGTHS]:
        return "it has sequence_lens"
    if names[_PEEPHOLES] and node.op_type == "LSTM":
        return "it has peepholes"
    if given.get("layout", 0) or given.get("input_forget", 0):
        return "it has layout 1 or input_forget"
    if given.keys() & {"clip", "activation_alpha", "activation_beta"}:
        return "it clips, or gives its functions an alpha or beta"
    functions = [name.lower() for name in given.get("activations", [])]
    own = _FUNCTIONS[node.op_type]
    return "" if functions in ([], own, own * 2) else "its functions are not ONNX's own"


class _Layer:
    """One layer in the making. Values and nodes are named `<layer>.<what>`, those of direction k `<layer>.<what>k`."""

    def __init__(self, node: NodeProto, tensors: Mapping[str, TensorProto], prefix: str) -> None:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._node, self._prefix, self._type = node, prefix, node.op_type
        self._resets_later = self._type == "GRU" and bool(given.get("linear_before_reset", 0))
        self._inputs = [*node.input, *[""] * 8][:8]
        self._w, self._r = (numpy_helper.to_array(tensors[self._inputs[i]]) for i in (_W, _R))
        self._ways, self._hidden = self._w.shape[0], self._r.shape[2]
        bias = tensors.get(self._inputs[_B])
        both = np.zeros((self._ways, 2 * self._w.shape[1])) if bias is None else numpy_helper.to_array(bias)
        self._b = both.astype(np.float64).reshape(self._ways, 2, -1)
        self._backwards = [0, 1] if self._ways == 2 else [int(given.get("direction") == b"reverse")]
        self._nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []

    def split(self) -> list[NodeProto]:
        """Nodes with the outputs of the layer."""
        parts = self._projections()
        states = [self._first(way, kind) for way in range(self._ways) for kind in range(len(self._kinds))]
        return [*self._scanned(parts, states), *self._outputs()]

    @property
    def _kinds(self) -> str:
        return _STATES[self._type]

    def _op(self, op_type: str, reads: list[str], makes: str | list[str], **attributes: Any) -> str:
        makes = [makes] if isinstance(makes, str) else makes
        names = [f"{self._prefix}.{name}" for name in makes]
        self._nodes.append(helper.make_node(op_type, reads, names, name=names[0], **attributes))
        return names[0]

    def _store(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        array = np.array(value, dtype, order="C")
        self.stored.append(numpy_helper.from_array(array, f"{self._prefix}.{name}"))
        return f"{self._prefix}.{name}"

    def _v(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    def _projections(self) -> list[str]:
        """P of each direction, [T, N, gates * hidden]."""
        bias = self._b.sum(1)
        if self._resets_later:
            bias[:, 2 * self._hidden :] = self._b[:, 0, 2 * self._hidden :]
        weights = self._store("W", np.concatenate(list(self._w)).T)
        product = self._op("MatMul", [self._inputs[_X], weights], "projection")
        names = [f"p{way}" for way in range(self._ways)]
        if self._ways == 1:
            return [self._op("Add", [product, self._store("b", bias.reshape(-1))], names)]
        biased = self._op("Add", [product, self._store("b", bias.reshape(-1))], "biased")
        self._op("Split", [biased], names, axis=2, num_outputs=2)
        return [self._v(name) for name in names]

    def _first(self, way: int, kind: int) -> str:
        """The state [N, hidden] that a direction begins with."""
        given, letter = self._inputs[_FIRST_STATE + kind], self._kinds[kind]
        if given:
            index = self._store(f"way_{letter}{way}", way, np.int64)
            return self._op("Gather", [given, index], f"first_{letter}{way}", axis=0)
        name = self._v(f"zero_{letter}{way}")
        rows = self._op("Shape", [self._inputs[_X]], f"rows_{letter}{way}", start=1, end=2)
        size = self._store(f"hidden_{letter}{way}", [self._hidden], np.int64)
        shape = self._op("Concat", [rows, size], f"shape_{letter}{way}", axis=0)
        return self._op("ConstantOfShape", [shape], name.removeprefix(f"{self._prefix}."))

    def _scanned(self, parts: list[str], states: list[str]) -> list[NodeProto]:
        around, self._nodes = self._nodes, []
        ways, width = range(self._ways), self._w.shape[1]
        for way in ways:
            (self._lstm if self._type == "LSTM" else self._gru)(way)
            self._op("Identity", [self._v(f"next_h{way}")], f"step{way}")
        kinds = [f"{kind}{way}" for way in ways for kind in self._kinds]
        reads = [self._value(f"old_{kind}", self._hidden) for kind in kinds]
        reads += [self._value(f"at{way}", width) for way in ways]
        makes = [self._value(f"next_{kind}", self._hidden) for kind in kinds]
        makes += [self._value(f"step{way}", self._hidden) for way in ways]
        body = helper.make_graph(self._nodes, self._v("step"), reads, makes)
        self._nodes = around
        names = [*(f"last_{kind}" for kind in kinds), *(f"states{way}" for way in ways)]
        names = [self._v(name) for name in names]  # ONNX Runtime wants a name for each, read or not
        recurrence = helper.make_node(
            "Scan", [*states, *parts], names, name=self._v("recurrence"), body=body, num_scan_inputs=len(parts),
            scan_input_directions=self._backwards, scan_output_directions=self._backwards,
        )  # fmt: skip
        return [*around, recurrence]

    def _value(self, name: str, width: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(self._v(name), TensorProto.FLOAT, [None, width])

    def _lstm(self, way: int) -> None:
        v, op = self._v, self._op
        product = op("MatMul", [v(f"old_h{way}"), self._store(f"R{way}", self._r[way].T)], f"product{way}")
        gates = op("Add", [product, v(f"at{way}")], f"gates{way}")
        op("Split", [gates], [f"{gate}_in{way}" for gate in "iofg"], axis=1, num_outputs=4)
        i, o, f, g = (
            op("Tanh" if gate == "g" else "Sigmoid", [v(f"{gate}_in{way}")], f"{gate}{way}") for gate in "iofg"
        )
        kept = op("Mul", [f, v(f"old_c{way}")], f"kept{way}")
        cell = op("Add", [kept, op("Mul", [i, g], f"new{way}")], f"next_c{way}")
        op("Mul", [o, op("Tanh", [cell], f"shown{way}")], f"next_h{way}")

    def _gru(self, way: int) -> None:
        v, op, size = self._v, self._op, self._hidden
        parts = self._store(f"parts{way}", [2 * size, size], np.int64)
        old, weights = v(f"old_h{way}"), self._r[way].T
        op("Split", [v(f"at{way}"), parts], [f"zr_at{way}", f"g_at{way}"], axis=1)
        if self._resets_later:
            product = op("MatMul", [old, self._store(f"R{way}", weights)], f"product{way}")
            op("Split", [product, parts], [f"zr_of{way}", f"g_of{way}"], axis=1)
        else:
            op("MatMul", [old, self._store(f"Rzr{way}", weights[:, : 2 * size])], f"zr_of{way}")
        gates = op("Add", [v(f"zr_of{way}"), v(f"zr_at{way}")], f"zr_in{way}")
        op("Split", [op("Sigmoid", [gates], f"zr{way}")], [f"z{way}", f"r{way}"], axis=1, num_outputs=2)
        if self._resets_later:
            bias = self._store(f"Rb{way}", self._b[way, 1, 2 * size :])
            inner = op("Mul", [v(f"r{way}"), op("Add", [v(f"g_of{way}"), bias], f"inner{way}")], f"reset{way}")
        else:
            reset = op("Mul", [v(f"r{way}"), old], f"reset{way}")
            inner = op("MatMul", [reset, self._store(f"Rh{way}", weights[:, 2 * size :])], f"inner{way}")
        new = op("Tanh", [op("Add", [inner, v(f"g_at{way}")], f"g_in{way}")], f"g{way}")
        change = op("Mul", [v(f"z{way}"), op("Sub", [old, new], f"less{way}")], f"change{way}")
        op("Add", [new, change], f"next_h{way}")

    def _outputs(self) -> list[NodeProto]:
        """Y [T, ways, N, hidden], Y_h and Y_c [ways, N, hidden], as far as they are named."""
        self._nodes = []
        for name, what, axis in zip(self._node.output, ("states", "last_h", "last_c"), (1, 0, 0), strict=False):
            if name:
                at = self._store(f"axis_{what}", [axis], np.int64)
                made = [self._op("Unsqueeze", [self._v(f"{what}{w}"), at], f"one_{what}{w}") for w in range(self._ways)]
                self._nodes.append(helper.make_node("Concat", made, [name], name=self._v(f"all_{what}"), axis=axis))
        return self._nodes
