"""Zero the two smaller of every four weights, as sparse tensor cores skip them, and correct the biases.

Algebra   of w[4 i .. 4 i + 3] along the reduction axis, the two of smallest magnitude become 0 (the first ones, where
          magnitudes are equal); the layer's outputs get the mean and the deviation back that they
          had (see `layerwise.with_statistics_of`), through the bias and one factor for each output channel
Pattern   Conv W [out, in / group, ...]: groups along the input channels, for each filter and kernel position;
          Gemm and MatMul W: groups along the reduction. That is what TensorRT asks of a layer: for each output channel
          and each spatial position, every four input channels have at least two zeros, and their number is a multiple
          of 4 ("I/O Formats and Sparsity" in its documentation, section on sparsity)
Check     W is stored in floats, no output, and read by such layers alone, along the same axis; its reduction is a
          multiple of 4. A depthwise layer has a reduction of 1; a first layer on three colours one of 3
Rewrite   W keeps its name; weights and biases are corrected, as `weighted.with_changed_outputs` says
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from engines.graphs import copy_of
from engines.passes.layerwise import with_statistics_of
from engines.passes.weighted import Weighted, reader_counts, weighted_layers
from engines.reference import Arrays

__all__ = ["prune_24"]

_GROUP, _ZEROS = 4, 2
_WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})


def prune_24(model: ModelProto, samples: Iterable[Arrays]) -> tuple[ModelProto, str]:
    """The model with every layer pruned that 2:4 sparsity fits; the note names the others and says why.

    `samples` (one dictionary of inputs each, read once) are run through ONNX Runtime, whose errors pass through;
    without any, biases stay as they are. It is the same object where nothing is pruned.
    """
    layers = weighted_layers(model.graph)
    left = _left(model, layers)
    zeroed = _zeroed(model, [layer for layer in layers if layer.node.name not in left])
    reasons = [f"{name} is left: {reason}" for name, reason in left.items()]
    if not zeroed:
        return model, "; ".join(["nothing is pruned", *reasons])
    copy = copy_of(model)
    for tensor in copy.graph.initializer:
        if tensor.name in zeroed:
            tensor.CopyFrom(numpy_helper.from_array(zeroed[tensor.name], tensor.name))
    touched = {layer.node.name: None for layer in layers if layer.weights in zeroed}
    corrected, said = with_statistics_of(model, copy, samples, touched)
    return corrected, "; ".join(filter(None, [_counted(len(touched)), said, *reasons]))


def _counted(layers: int) -> str:
    return "1 layer is pruned" if layers == 1 else f"{layers} layers are pruned"


def _left(model: ModelProto, layers: list[Weighted]) -> dict[str, str]:
    """Node by node, why a layer is not pruned."""
    by_node = {one.node.name: one for one in layers}
    counts, outputs = reader_counts(model.graph), {value.name for value in model.graph.output}
    axes: dict[str, Counter[int]] = {}
    for one in layers:
        axes.setdefault(one.weights, Counter())[one.in_axis] += 1
    left = {}
    for node in model.graph.node:
        layer = by_node.get(node.name)
        if node.op_type in _WITH_WEIGHTS and layer is None and _has_weights(model, node):
            left[node.name] = f"2:4 sparsity is not for its weights ({node.op_type})"
        elif layer is not None:
            along = axes[layer.weights]
            reason = _refusal(layer)
            if layer.weights in outputs:
                reason = f"{layer.weights} is an output"
            elif along[layer.in_axis] < counts[layer.weights]:
                reason = f"{layer.weights} is read by other nodes too"
            if reason:
                left[node.name] = reason
    return left


def _refusal(layer: Weighted) -> str:
    if layer.is_depthwise:
        return "it is depthwise"
    size = layer.shape[layer.in_axis]
    return "" if size and size % _GROUP == 0 else f"its reduction is over {size} channels, no multiple of {_GROUP}"


def _has_weights(model: ModelProto, node: NodeProto) -> bool:
    """A product of two activations has none."""
    return any(tensor.name in node.input[1:] for tensor in model.graph.initializer)


def _zeroed(model: ModelProto, layers: list[Weighted]) -> dict[str, np.ndarray]:
    """The new weights by name, where any changed."""
    axes = {layer.weights: layer.in_axis for layer in layers}
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name in axes:
            weights = numpy_helper.to_array(tensor)
            pruned = _smaller_two_zeroed(weights, axes[tensor.name])
            if not np.array_equal(weights, pruned, equal_nan=True):
                found[tensor.name] = pruned
    return found


def _smaller_two_zeroed(weights: np.ndarray, axis: int) -> np.ndarray:
    last = np.moveaxis(weights, axis, -1)
    groups = last.reshape(*last.shape[:-1], -1, _GROUP).copy()
    smallest = np.argsort(np.abs(groups), axis=-1, kind="stable")[..., :_ZEROS]
    np.put_along_axis(groups, smallest, groups.dtype.type(0), axis=-1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(last.shape), -1, axis))
