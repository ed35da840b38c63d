"""Whole numbers of 8 and 16 bits wrap, in the engine as in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.reference import Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT

TYPES = {"UINT8": np.uint8, "INT8": np.int8, "UINT16": np.uint16, "INT16": np.int16}


def model_of(kind: int, inputs: dict[str, int], nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, given, ["n", "m"]) for name, given in inputs.items()]
    outputs = [helper.make_tensor_value_info(node.output[0], kind, ["n", "m"]) for node in nodes]
    graph = helper.make_graph(nodes, "g", values, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def assert_same(built: Callable[[onnx.ModelProto], Built], model: onnx.ModelProto, **inputs: np.ndarray) -> None:
    want, (got,) = Reference(model)(inputs), built(model).answer(inputs)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def node(op: str, *names: str, **given: Any) -> onnx.NodeProto:
    return helper.make_node(op, names, [f"y{op}{given.get('direction', '')}"], **given)


@pytest.mark.parametrize("name", TYPES)
def test_every_pair_of_numbers(built: Callable[[onnx.ModelProto], Built], name: str) -> None:
    """All pairs of 8 bits; of 16, a grid that has both ends."""
    kind, dtype = TensorProto.DataType.Value(name), TYPES[name]
    limits = np.iinfo(dtype)
    numbers = np.unique(np.linspace(limits.min, limits.max, 256).round()).astype(dtype)
    a, c = (array.reshape(256, 256).copy() for array in np.meshgrid(numbers, numbers))
    operators = ["Add", "Sub"] if name.endswith("16") else ["Add", "Sub", "Mul"]
    nodes = [node(op, "a", "c") for op in operators]
    if limits.min < 0 and name != "INT16":
        nodes += [node("Abs", "a"), node("Neg", "a")]
    assert_same(built, model_of(kind, {"a": kind, "c": kind}, nodes), a=a, c=c)


@pytest.mark.parametrize("name", ["UINT8", "INT8"])
def test_quotients_are_cut(built: Callable[[onnx.ModelProto], Built], name: str) -> None:
    kind, dtype = TensorProto.DataType.Value(name), TYPES[name]
    limits = np.iinfo(dtype)
    a = np.arange(limits.min, limits.max + 1).astype(dtype)[:, None].repeat(255, axis=1)
    divisors = np.array([n for n in range(limits.min, limits.max + 1) if n not in (0, -1)][:250], dtype)
    graph = helper.make_graph(
        [helper.make_node("Div", ["a", "c"], ["y"])], "g", [helper.make_tensor_value_info("a", kind, ["n", 250])],
        [helper.make_tensor_value_info("y", kind, ["n", 250])], [onnx.numpy_helper.from_array(divisors, "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert_same(built, model, a=a[:, :250].copy())


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifted_bits_leave(built: Callable[[onnx.ModelProto], Built], direction: str) -> None:
    kind = TensorProto.UINT8
    a, c = (array.astype(np.uint8) for array in np.meshgrid(np.arange(256), np.arange(8)))
    graph = helper.make_graph(
        [helper.make_node("BitShift", ["a", "c"], ["y"], direction=direction)], "g",
        [helper.make_tensor_value_info("a", kind, ["n", 256])], [helper.make_tensor_value_info("y", kind, ["n", 256])],
        [onnx.numpy_helper.from_array(c[:, :1].copy()[3:4], "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert_same(built, model, a=a)


@pytest.mark.parametrize("name", ["UINT8", "INT8", "UINT16", "INT16"])
def test_floats_that_a_cast_makes_wrap(built: Callable[[onnx.ModelProto], Built], name: str) -> None:
    """ONNX leaves this open; ONNX Runtime cuts to 32 bits first."""
    kind = TensorProto.DataType.Value(name)
    x = np.array([[0, 1.5, -1.5, 127.9, 128, 255.9, 256, 300, -1, -129, -200, 65535, 65536, 40000, -40000]], np.float32)
    model = model_of(kind, {"x": FLOAT}, [helper.make_node("Cast", ["x"], ["y"], to=kind)])
    assert_same(built, model, x=np.concatenate([x[:, :8], x[:, 7:]], axis=1))


def test_numbers_in_the_middle_of_a_graph_wrap_too(built: Callable[[onnx.ModelProto], Built]) -> None:
    """Their types are declared nowhere."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.UINT8),
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=FLOAT),
    ]
    model = model_of(FLOAT, {"x": FLOAT}, nodes)
    del model.graph.output[:-1]
    assert_same(built, model, x=np.array([[0, 1, 127, 128, 129, 254, 255]], np.float32))
