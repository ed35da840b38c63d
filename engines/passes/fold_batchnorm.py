"""Fold a batch normalization, as it is at inference, into the convolution or product before it.

Algebra   BN(y) = s (y - m) + b  with  s = gamma / sqrt(var + epsilon), one number a channel
          y = W * x + c  (a convolution, transposed or not)        BN(y) = (s W) * x + s (c - m) + b
          y = alpha x W + beta c  (Gemm)                           BN(y) = alpha x (s W) + s (beta c - m) + b
          computed in float64 and rounded once
Pattern   BatchNormalization over the output of Conv, ConvTranspose or Gemm
Check     nobody else reads that output, and it is no output of the graph (the matcher's own rule); all of W, c, gamma,
          beta, m, var are stored in the same graph, of W's type, and are no outputs; W has no other reader; it is not
          training; var + epsilon is positive, and the new weights are finite in W's type. Binary layers keep theirs: it
          decides on which side of a sign ties fall, as it is computed
Rewrite   the convolution keeps its name and its weight's name, and writes the value that the normalization wrote
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto
from onnxscript.rewriter import RULE_NAME_TAG, MatchResult, pattern

from engines.graphs import all_graphs, all_nodes
from engines.passes.binary_find import find_binary_layers

__all__ = ["fold_batchnorm"]

_EPSILON = 1e-5
_NORM_INPUTS = 5


def fold_batchnorm(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with what can be folded folded; the note says why a normalization was left.

    It is the same object where nothing is folded.
    """
    if not any(node.op_type == "BatchNormalization" for node in all_nodes(model.graph)):
        return model, ""
    if any(graph.sparse_initializer for graph in all_graphs(model.graph)):
        return model, "nothing is folded: the rewriter would lose the sparse weights"
    try:
        graph = ir.from_proto(model)
    except Exception as error:  # it does not read every form that ONNX has
        return model, f"nothing is folded: the rewriter says: {str(error).splitlines()[0]}"
    left: dict[str, str] = {}
    taken = {tensor.name for tensor in model.graph.initializer}.union(
        name for node in all_nodes(model.graph) for name in (*node.input, *node.output)
    )
    kinds = (_Conv, _ConvTranspose, _Gemm)
    binary = {layer.node.output[0] for layer in find_binary_layers(model)[0]}
    rules = pattern.RewriteRuleSet([kind.rule(left, taken, binary) for kind in kinds])  # type: ignore[no-untyped-call]
    count = rules.apply_to_model(graph)
    note = "; ".join(f"{name} is left: {reason}" for name, reason in left.items())
    if not count:
        return model, note
    for node in graph.graph.all_nodes():
        node.metadata_props.pop(RULE_NAME_TAG, None)
    _drop_unread(graph.graph)
    folded: ModelProto = ir.to_proto(graph)
    return folded, note


def _drop_unread(graph: ir.Graph) -> None:
    """Statistics that went into weights."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


class _Fold(pattern.RewriteRuleClassBase):
    op_type = ""

    def __init__(self, left: dict[str, str], taken: set[str], binary: set[str]) -> None:
        super().__init__(name=f"fold into {self.op_type}")
        self._left, self._taken, self._binary = left, taken, binary

    def pattern(self, op: Any, x: ir.Value) -> Any:
        weighted = getattr(op, self.op_type)(x, _allow_other_inputs=True, _outputs=["weighted"])
        return op.BatchNormalization(weighted, _allow_other_inputs=True, _outputs=["normalized"])

    def check(self, context: Any, x: ir.Value, weighted: ir.Value, normalized: ir.Value) -> MatchResult:
        result = MatchResult()
        reason = self._refusal(_maker(weighted), _maker(normalized))
        if reason:
            self._left[_maker(normalized).name or str(normalized.name)] = reason
            result.fail(reason)
        return result

    def _refusal(self, node: ir.Node, norm: ir.Node) -> str:
        if norm.attributes.get_int("training_mode", 0) or len(norm.outputs) > 1:
            return "it is training"
        if node.outputs[0].name in self._binary:
            return "its layer has weights of -1 and +1, and folds it itself"
        weights, *others = [value for value in (*node.inputs[1:], *norm.inputs[1:]) if value is not None]
        for value in (weights, *others):
            if not value.is_initializer() or value.graph is not norm.graph:
                return f"{value.name} is not stored beside it"
            if value.is_graph_output():
                return f"{value.name} is an output"
            if value.dtype != weights.dtype:
                return f"{value.name} is {value.dtype}, the weights {weights.dtype}"
        if len(weights.uses()) > 1:
            return f"{weights.name} is read by other nodes too"
        gamma, shift, mean, variance = _statistics(norm)
        if any(numbers.ndim != 1 for numbers in (gamma, shift, mean, variance)):
            return "its statistics are not one number a channel"
        if not np.all(variance + _epsilon(norm) > 0):
            return "a variance is negative"
        if not all(np.isfinite(array).all() for array in self._folded(node, norm)):
            return "the folded weights would not be finite"
        return ""

    def _folded(self, node: ir.Node, norm: ir.Node) -> tuple[np.ndarray, np.ndarray]:
        gamma, shift, mean, variance = _statistics(norm)
        scale = gamma / np.sqrt(variance + _epsilon(norm))
        weights = _numbers(node.inputs[1])
        bias = _numbers(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        beta = node.attributes.get_float("beta", 1.0) if self.op_type == "Gemm" else 1.0
        with np.errstate(over="ignore"):
            scaled = weights.astype(np.float64) * self._along_outputs(node, weights, scale)
            return scaled.astype(weights.dtype), (scale * (beta * bias - mean) + shift).astype(weights.dtype)

    def _along_outputs(self, node: ir.Node, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """`scale`, one number an output channel, in a shape that multiplies the weights."""
        raise NotImplementedError

    def rewrite(self, op: Any, x: ir.Value, weighted: ir.Value, normalized: ir.Value) -> ir.Value:
        node = _maker(weighted)
        weights, bias = self._folded(node, _maker(normalized))
        attributes = {name: value for name, value in node.attributes.items() if name != "beta"}
        name = str(node.inputs[1].name if node.inputs[1] else "")
        stored = op.initializer(ir.tensor(weights), name=name)
        added = op.initializer(ir.tensor(bias), name=self._free_name(f"{name}_bias"))
        folded: ir.Value = getattr(op, self.op_type)(x, stored, added, **attributes)
        _maker(folded).name = node.name
        return folded

    def _free_name(self, wanted: str) -> str:
        candidates = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count()))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        return name


class _Conv(_Fold):
    """W [out, in / group, ...]."""

    op_type = "Conv"

    def _along_outputs(self, node: ir.Node, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return scale.reshape(-1, *[1] * (weights.ndim - 1))


class _ConvTranspose(_Fold):
    """W [in, out / group, ...]: the first in / group rows belong to the first group of outputs, and so on."""

    op_type = "ConvTranspose"

    def _along_outputs(self, node: ir.Node, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
        groups = node.attributes.get_int("group", 1)
        rows = np.repeat(scale.reshape(groups, -1), weights.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (weights.ndim - 2))


class _Gemm(_Fold):
    """W [in, out], or [out, in] where it is transposed."""

    op_type = "Gemm"

    def _along_outputs(self, node: ir.Node, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return scale[:, None] if node.attributes.get_int("transB", 0) else scale[None, :]


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None  # the pattern has found it
    return node


def _statistics(norm: ir.Node) -> list[np.ndarray]:
    """gamma, beta, mean, variance in float64."""
    return [_numbers(value).astype(np.float64) for value in norm.inputs[1:_NORM_INPUTS]]


def _epsilon(norm: ir.Node) -> float:
    return norm.attributes.get_float("epsilon", _EPSILON)


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None  # an initializer has its tensor
    return value.const_value.numpy()
