"""Mark binary layers before the others are quantized, and store what they multiply by.

Algebra   none: weights that follow from stored numbers alone (signs, scales, selections) are computed and stored
Pattern   layers that `binary_find` knows, what their signs are made by, and all that lies between the sums of one and
          the signs that another reads
Check     element by element, or a MaxPool: elsewhere the rest of the network reads the same values
Rewrite   weights and biases as initializers: NNCF reads the whole graph, and does not follow them through a Where
"""

from __future__ import annotations

from onnx import ModelProto, numpy_helper

from engines.graphs import copy_of, read_anywhere
from engines.passes.binary_expressions import parts_of, root_of
from engines.passes.binary_find import find_binary_layers
from engines.passes.binary_wiring import Wiring
from engines.passes.names import FreeNames

__all__ = ["marked_nodes", "with_stored_weights"]

_STORED_INPUTS = slice(1, 3)


def marked_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes that must stay as they are, or thresholds would be taken of other numbers."""
    found, _ = find_binary_layers(model)
    wiring, by_output = Wiring(model), {layer.node.output[0]: layer for layer in found}
    names = {layer.node.name: None for layer in found}
    for layer in found:
        names.update(dict.fromkeys(_between(layer.signs.source, layer.node.input[0], wiring)))
        made_by = by_output.get(root_of(layer.signs.source, wiring))
        if made_by is None:
            continue
        rank = 4 if made_by.node.op_type == "Conv" else 2
        after, pool, before = parts_of(layer.signs.source, wiring, len(made_by.scale), rank) or (None, None, None)
        names.update((node.name, None) for part in (before, after) if part for node in part.nodes)
        if pool is not None:
            names[pool.name] = None
    return list(names)


def _between(source: str, data: str, wiring: Wiring) -> set[str]:
    """Names of the nodes that make a layer's signs of what is compared."""
    names, waiting = set[str](), [data]
    while waiting:
        name = waiting.pop()
        node = wiring.maker.get(name)
        if name != source and node is not None and node.name not in names and not wiring.is_constant(name):
            names.add(node.name)
            waiting.extend(node.input)
    return names


def with_stored_weights(model: ModelProto) -> ModelProto:
    """A copy in which all binary layers have theirs; the same object where they have them already."""
    found, _ = find_binary_layers(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    names = {
        layer.node.name for layer in found if not stored.issuperset(filter(None, layer.node.input[_STORED_INPUTS]))
    }
    if not names:
        return model
    copy, wiring = copy_of(model), Wiring(model)
    free = FreeNames(copy.graph)
    for node in copy.graph.node:
        for i, name in enumerate(node.input) if node.name in names else ():
            array = wiring.constant(name) if name and name not in stored else None
            if array is not None:
                node.input[i] = free(f"{name}.stored")
                copy.graph.initializer.append(numpy_helper.from_array(array, node.input[i]))
    _drop_unread(copy)
    return copy


def _drop_unread(model: ModelProto) -> None:
    graph = model.graph
    while True:
        read = read_anywhere(graph)
        kept = [node for node in graph.node if any(name in read for name in node.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    stored = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(stored)
