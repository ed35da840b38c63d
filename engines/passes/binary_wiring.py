"""What is known of a graph's values without running it: who makes them, what follows from stored numbers alone, shapes,
types, and of which it is certain that they are not negative.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from engines.graphs import opset_of, without_weights
from engines.passes.half_slots import attribute_of

__all__ = ["Wiring"]

_DEEPEST = 16
_FOLDED = frozenset({
    "Abs", "Add", "Cast", "Clip", "Div", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Mul", "Neg",
    "Not", "ReduceMean", "Reshape", "Sign", "Sub", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""What stands between stored weights and their signs and scales."""
_SHAPE_KEEPERS = frozenset({"Abs", "Cast", "Clip", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Sign", "Tanh"})
"""Of one value that keeps its shape; further inputs are single numbers."""
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})
_STAY_SO = frozenset({
    "AveragePool", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape", "Transpose",
})  # fmt: skip


class Wiring:
    """Who makes a value, and what is stored, or follows from that alone: exporters write signs of weights, too."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._model = model
        self.opset = opset_of(model) or 21
        self.maker = {name: node for node in graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._followed: dict[str, np.ndarray | None] = {}
        self.levels: dict[str, Any] = {}
        """What `binary_signs` has found out about a value; it asks again and again."""

    def constant(self, name: str, depth: int = 0) -> np.ndarray | None:
        """None where it depends on an input."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        if name not in self._followed:
            self._followed[name] = self._follow(name, depth)
        return self._followed[name]

    def _follow(self, name: str, depth: int) -> np.ndarray | None:
        node = self.maker.get(name)
        if node is None or node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx") or depth > _DEEPEST:
            return None
        given = {read: self.constant(read, depth + 1) for read in node.input if read}
        if not given or any(array is None for array in given.values()):
            return None
        return self.evaluated(node, {name: array for name, array in given.items() if array is not None})

    def evaluated(self, node: NodeProto, given: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What one node makes of arrays, by ONNX's own evaluator; None where that has no code for it."""
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
        inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
        graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info(node.output[0])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            with np.errstate(all="ignore"):
                (found,) = ReferenceEvaluator(model).run(None, dict(given))
        except Exception:
            return None
        return np.asarray(found)

    def filled(self, name: str, like: str, depth: int = 0) -> np.ndarray | None:
        """The one number, without dimensions, of a value that is made in the shape of `like`, as `ones_like` is."""
        node = self.maker.get(name)
        if node is None or depth > _DEEPEST or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Neg", "Cast", "Identity"):
            inner = self.filled(node.input[0], like, depth + 1)
            return None if inner is None else self.evaluated(node, {node.input[0]: inner})
        if node.op_type == "ConstantOfShape" and self._is_shape(node.input[0], like):
            value = attribute_of(node, "value")
            return np.zeros((), np.float32) if value is None else numpy_helper.to_array(value).reshape(())
        if node.op_type == "Expand" and self._is_shape(node.input[1], like):
            array = self.constant(node.input[0])
            return None if array is None or array.size != 1 else array.reshape(())
        return None

    def _is_shape(self, name: str, like: str) -> bool:
        node = self.maker.get(name)
        if (
            node is None
            or node.op_type != "Shape"
            or attribute_of(node, "start")
            or attribute_of(node, "end") is not None
        ):
            return False
        return self._first_of_shape(node.input[0]) == self._first_of_shape(like)

    def _first_of_shape(self, name: str) -> str:
        """The value, before others that have its shape because they are made of it element by element."""
        node = self.maker.get(name)
        while node is not None and node.op_type in _SHAPE_KEEPERS:
            name = node.input[0]
            node = self.maker.get(name)
        return name

    @functools.cached_property
    def _tensors(self) -> dict[str, TensorProto]:
        """Types of the values that have one. Looked for where it matters alone."""
        bare, _ = without_weights(self._model)
        with contextlib.suppress(Exception):  # what is declared is known without inference too
            bare = shape_inference.infer_shapes(bare)
        values = [*bare.graph.value_info, *bare.graph.input, *bare.graph.output]
        return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None where its rank is not known; a size that is not is -1."""
        tensor: Any = self._tensors.get(name)
        if tensor is None or not tensor.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)

    def rank(self, name: str) -> int | None:
        """None where it is not known."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def is_float(self, name: str) -> bool:
        """Whether it is known to be FP32."""
        tensor: Any = self._tensors.get(name)
        return tensor is not None and tensor.elem_type == TensorProto.FLOAT

    def keeps_shape(self, name: str, constant: np.ndarray) -> bool:
        """Whether the value keeps its shape beside this constant: it is not broadcast to a larger one."""
        if constant.size == 1 and constant.ndim <= 1:
            return True
        shape = self.shape(name) or ()
        own = shape[len(shape) - constant.ndim :] if constant.ndim <= len(shape) else ()
        return len(own) == constant.ndim and all(
            size in (1, mine) for size, mine in zip(constant.shape, own, strict=True)
        )

    def is_constant(self, name: str) -> bool:
        return self.constant(name) is not None

    def scalar(self, name: str) -> float | None:
        """The one number that a stored tensor has at all its places."""
        array = self.constant(name)
        if array is None or not array.size or not (array == array.flat[0]).all():
            return None
        return float(array.flat[0])

    def is_never_negative(self, name: str, depth: int = 0) -> bool:
        """Whether all of it is 0 or more (or NaN), by what makes it."""
        node = self.maker.get(name)
        if node is None or depth > _DEEPEST or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in _NEVER_NEGATIVE:
            return True
        if node.op_type == "Clip":
            low = self.scalar(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            return low is not None and low >= 0
        return node.op_type in _STAY_SO and self.is_never_negative(node.input[0], depth + 1)
