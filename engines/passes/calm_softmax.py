"""Keep saturating nodes of a twin in the range where they show their input.

    Softmax(x) -> Softmax(c x), c a positive constant; the same for LogSoftmax and Sigmoid

A deep network with random weights has logits of hundreds, whose softmax is 1 at one place whatever the input: nothing
can be seen through it. Multiplying by a constant changes values, never which row depends on which, so this is for twins
alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["saturating_inputs", "with_outputs", "with_scaled_values"]

_SATURATING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


def saturating_inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the values that saturating nodes of the main graph read."""
    return sorted({node.input[0] for node in model.graph.node if node.op_type in _SATURATING})


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that also gives the named values (types are left to the runtime)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return copy


def with_scaled_values(model: onnx.ModelProto, factors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy in which saturating nodes read `factors[name] * name`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in copy.graph.node:
        name = node.input[0] if node.op_type in _SATURATING else ""
        if name in factors:
            scaled = f"{name}_calm"
            if name not in made:
                made.add(name)
                copy.graph.initializer.append(numpy_helper.from_array(factors[name], f"{name}_factor"))
                nodes.append(helper.make_node("Mul", [name, f"{name}_factor"], [scaled], name=scaled))
            node.input[0] = scaled
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
