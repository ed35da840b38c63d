"""Put layers of a quantized graph back to float.

Algebra   y = f(DQ(Q(x)), DQ(q)) -> y = f(x, w), with the weights w that q was rounded from and the bias of then
Pattern   a node with stored weights that reads them through DequantizeLinear
Check     it is one of those named; the graph that was quantized has a node of this name
Rewrite   its inputs read what stood before their Q/DQ pairs; weights and bias come from the graph that was quantized.
          A pair behind which no INT8 layer is left, through whatever passes values on, goes too
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from engines.errors import ModelRefused
from engines.graphs import copy_of, read_anywhere

__all__ = ["float_layers", "quantized_layers"]


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that read stored weights through DequantizeLinear, in graph order."""
    graph = _Graph(model)
    return [node.name for node in model.graph.node if graph.is_layer(node)]


def float_layers(model: onnx.ModelProto, original: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The quantized `model` with these layers in float, as they are in `original`, the graph it was made from.

    Raises ModelRefused for a name that is no quantized layer.
    """
    unknown = set(names) - set(quantized_layers(model))
    if unknown:
        raise ModelRefused(f"{min(unknown)!r} is no quantized layer")
    if not names:
        return model
    copy = copy_of(model)
    _restore(copy, original, set(names))
    _bypass_idle_pairs(copy)
    _drop_unread(copy)
    return copy


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.stored = {tensor.name for tensor in model.graph.initializer}

    def source(self, name: str) -> str:
        """What stands before a Q/DQ pair; the name itself where it comes from none."""
        back = self.maker.get(name)
        if back is None or back.op_type != "DequantizeLinear":
            return name
        quantize = self.maker.get(back.input[0])
        return quantize.input[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else name

    def is_stored_integer(self, name: str) -> bool:
        """Whether this is DequantizeLinear of a constant."""
        back = self.maker.get(name)
        return back is not None and back.op_type == "DequantizeLinear" and back.input[0] in self.stored

    def is_layer(self, node: onnx.NodeProto) -> bool:
        return any(map(self.is_stored_integer, node.input))


def _restore(copy: onnx.ModelProto, original: onnx.ModelProto, names: set[str]) -> None:
    graph, before = _Graph(copy), {node.name: node for node in original.graph.node}
    floats = {tensor.name: tensor for tensor in original.graph.initializer}
    for node in copy.graph.node:
        if node.name not in names:
            continue
        for position, name in enumerate(node.input):
            own = before[node.name].input[position]
            if own in floats and (graph.is_stored_integer(name) or name in graph.stored):
                node.input[position] = _restored(copy, floats[own])
            else:
                node.input[position] = graph.source(name)


def _restored(copy: onnx.ModelProto, tensor: onnx.TensorProto) -> str:
    """The name under which the graph holds this constant: NNCF corrects biases in place, others may still read that."""
    stored = {one.name: one for one in copy.graph.initializer}
    if tensor.name in stored and stored[tensor.name] == tensor:
        return str(tensor.name)
    name = f"{tensor.name}_float"
    if name not in stored:
        added = copy.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = name
    return name


def _bypass_idle_pairs(copy: onnx.ModelProto) -> None:
    """Whoever reads a pair that serves no layer reads what stands before it."""
    graph = _Graph(copy)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    idle = {
        node.output[0]: graph.source(node.output[0])
        for node in copy.graph.node
        if graph.source(node.output[0]) != node.output[0] and not _serves_layer(node.output[0], readers, graph)
    }
    outputs = {value.name for value in copy.graph.output}
    for node in copy.graph.node:
        for position, name in enumerate(node.input):
            source = name
            while source in idle and source not in outputs:
                source = idle[source]
            node.input[position] = source


def _serves_layer(name: str, readers: dict[str, list[onnx.NodeProto]], graph: _Graph) -> bool:
    """Whether an INT8 layer reads this value, or what is made of it before it is rounded again."""
    seen, waiting = {name}, [name]
    while waiting:
        for node in readers.get(waiting.pop(), ()):
            if graph.is_layer(node):
                return True
            if node.op_type == "QuantizeLinear":
                continue
            new = [output for output in node.output if output not in seen]
            seen.update(new)
            waiting += new
    return False


def _drop_unread(copy: onnx.ModelProto) -> None:
    """Q/DQ nodes and constants that nobody reads any more."""
    while True:
        read = read_anywhere(copy.graph)
        idle = [
            node
            for node in copy.graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not read & set(node.output)
        ]
        if not idle:
            break
        for node in idle:
            copy.graph.node.remove(node)
    unread = [tensor for tensor in copy.graph.initializer if tensor.name not in read]
    for tensor in unread:
        copy.graph.initializer.remove(tensor)
