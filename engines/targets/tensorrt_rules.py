"""What TensorRT takes, checked on the graph before its parser sees it: that only warns, or means something else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import onnx
from onnx import TensorProto

from engines.errors import ModelRefused
from engines.passes.half_rules import RECURRENT
from engines.passes.half_slots import attribute_of, value_types
from engines.passes.signed import unsigned_pairs
from engines.plugins.gpu.operators import OPERATORS
from engines.plugins.ops import DOMAIN

__all__ = ["graph_counts", "refuse_for_tensorrt"]

_MOST_NAMED = 5
_LENGTHS = 4
"""Position of `sequence_lens` among the inputs of a recurrent operator."""
_LAYERS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
}  # fmt: skip
"""Operators that the parser turns into one layer each, and the layer's type."""
_PLUGINS = frozenset(operator.name for operator in OPERATORS)
_DATATYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.INT8: "INT8", TensorProto.UINT8: "UINT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
}  # fmt: skip


def refuse_for_tensorrt(model: onnx.ModelProto) -> None:
    """Raise ModelRefused for what TensorRT has not, or takes for something else, by the names of the nodes.

    Unsigned 8-bit pairs are taken for signed ones with a warning alone; of zero points it has 0 alone, of activations
    one scale each; recurrent layers have the time first, keep their forget gate, and in half know no lengths; other
    domains' operators need a plugin.
    """
    types = value_types(model)
    for said, found in _RULES.items():
        named = found(model, types)
        if named:
            raise ModelRefused(f"TensorRT takes {said}: {_named(named)}")


def graph_counts(model: onnx.ModelProto) -> dict[str, int]:
    """How many layers of each (type, datatype of its output) the parser has to make of the weighted operators and the
    roundings of a graph, in the words of `tensorrt_options.network_counts`.
    """
    types = value_types(model)
    counts = Counter(
        f"{_LAYERS[node.op_type]} {_DATATYPES.get(types.get(node.output[0], 0), 'unknown')}"
        for node in model.graph.node
        if node.op_type in _LAYERS
    )
    counts.update(f"{node.op_type} {_plugin_datatype(node)}" for node in model.graph.node if _is_plugin(node))
    return dict(sorted(counts.items()))


def _plugin_datatype(node: onnx.NodeProto) -> str:
    half = attribute_of(node, "half")
    return "INT32" if half is None else ("FP32", "FP16")[half]


def _per_axis_activations(model: onnx.ModelProto, _: dict[str, int]) -> list[str]:
    """Names of the nodes that round what is computed with a scale for each channel."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in stored]
    return [node.name for node in quantizing if node.input[1] in stored and math.prod(stored[node.input[1]].dims) > 1]


def _foreign(model: onnx.ModelProto, _: dict[str, int]) -> list[str]:
    nodes = [node for node in model.graph.node if node.domain not in ("", "ai.onnx") and not _is_plugin(node)]
    return [f"{node.name or node.output[0]} ({node.domain}.{node.op_type})" for node in nodes]


def _is_plugin(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in _PLUGINS


def _recurrent(model: onnx.ModelProto, attribute: str) -> list[str]:
    nodes = [node for node in model.graph.node if node.op_type in RECURRENT and attribute_of(node, attribute)]
    return [node.name or node.output[0] for node in nodes]


def _half_with_lengths(model: onnx.ModelProto, types: dict[str, int]) -> list[str]:
    nodes = [node for node in model.graph.node if node.op_type in RECURRENT and len(node.input) > _LENGTHS]
    half = [node for node in nodes if node.input[_LENGTHS] and types.get(node.input[0]) == TensorProto.FLOAT16]
    return [node.name or node.output[0] for node in half]


_Rule = Callable[[onnx.ModelProto, dict[str, int]], list[str]]
_RULES: dict[str, _Rule] = {
    "one scale for all of an activation; these have more": _per_axis_activations,
    "signed 8-bit pairs with a zero point of 0 alone; these are others": lambda model, _: unsigned_pairs(model),
    "operators of ONNX alone, and those it has a plugin for; these are others": _foreign,
    "recurrent layers with layout 0, the time first; these have the rows first": lambda m, _: _recurrent(m, "layout"),
    "recurrent layers that keep their forget gate; these have input_forget": lambda m, _: _recurrent(m, "input_forget"),
    "lengths of sequences in FP32 layers alone; these run in half": _half_with_lengths,
}
"""By what TensorRT takes, in words, the nodes that are something else."""


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
