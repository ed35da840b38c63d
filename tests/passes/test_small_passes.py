"""Inlining, stored constants, names. Each changes what it says and leaves the answers alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.graphs import all_nodes, copy_of, with_weights, without_weights
from engines.passes.inline import inline_functions
from engines.passes.names import name_nodes
from engines.passes.weights import store_constants
from tests.passes.answers import assert_same_answers, operators
from tests.passes.old_operators import body_of
from tests.support.onnx_models import FLOAT, build, linear

node = helper.make_node


def with_function(opset: int = 17) -> onnx.ModelProto:
    """y = twice(twice(x)), where twice calls add."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    add = helper.make_function("my", "add", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], imports)
    twice = helper.make_function("my", "twice", ["a"], ["b"], [node("add", ["a"], ["b"], domain="my")], imports)
    model = build([node("Relu", ["x"], ["y"])], {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])})
    del model.graph.node[:]
    model.graph.node.extend(
        [node("twice", ["x"], ["h"], domain="my"), node("twice", ["h"], ["y"], domain="my")],
    )
    model.functions.extend([add, twice])
    model.opset_import.append(imports[1])
    onnx.checker.check_model(model)
    return model


def test_functions_within_functions_are_inlined() -> None:
    model = with_function()
    after, note = inline_functions(model)
    assert operators(after) == ["Add", "Add"]
    assert not after.functions
    assert not note
    assert_same_answers(model, after)


def test_a_function_of_another_opset_is_converted() -> None:
    squeeze = helper.make_function(
        "my", "flat", ["a"], ["b"], [node("Squeeze", ["a"], ["b"], axes=[1])], [helper.make_opsetid("", 11)]
    )
    model = build([node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2, 1, 4])}, {"y": (FLOAT, [2, 4])})
    del model.graph.node[:]
    model.graph.node.append(node("flat", ["x"], ["y"], domain="my"))
    model.functions.append(squeeze)
    model.opset_import.append(helper.make_opsetid("my", 1))
    after, _ = inline_functions(model)
    assert "Squeeze" in operators(after)
    row = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    plain = build(
        [node("Squeeze", ["x", "one"], ["y"])], {"x": (FLOAT, [2, 1, 4])}, {"y": (FLOAT, [2, 4])},
        {"one": np.array([1], np.int64)},
    )  # fmt: skip
    assert_same_answers(plain, after, rows=[{"x": row}, {"x": -row}])


CONSTANTS = {
    "value": numpy_helper.from_array(np.array([1, 2, 3], np.float32)),
    "value_float": 2.5,
    "value_floats": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("attribute", CONSTANTS)
def test_constants_are_stored(attribute: str) -> None:
    nodes = [node("Constant", [], ["c"], **{attribute: CONSTANTS[attribute]}), node("Mul", ["x", "c"], ["y"])]
    model = build(nodes, {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N", 3])})
    after, _ = store_constants(model)
    assert operators(after) == ["Mul"]
    assert [tensor.name for tensor in after.graph.initializer] == ["c"]
    assert_same_answers(model, after)


@pytest.mark.parametrize(("attribute", "value"), [("value_int", 1), ("value_ints", [0, 1])])
def test_whole_numbers_are_stored_as_int64(attribute: str, value: int | list[int]) -> None:
    nodes = [node("Constant", [], ["c"], **{attribute: value}), node("Gather", ["x", "c"], ["y"])]
    model = build(nodes, {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, [3] if attribute == "value_int" else [2, 3])})
    after, _ = store_constants(model)
    (stored,) = after.graph.initializer
    assert (stored.data_type, list(stored.dims)) == (TensorProto.INT64, [] if attribute == "value_int" else [2])
    assert_same_answers(model, after)


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    nodes = [node("Constant", [], ["c"], value_float=2.0), node("Mul", ["x", "c"], ["y"])]
    model = build(nodes, {"x": (FLOAT, [3])}, {"y": (FLOAT, [3]), "c": (FLOAT, [])})
    assert store_constants(model)[0] is model


def test_stored_inputs_of_old_files_are_no_inputs_any_more() -> None:
    model = linear()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("W", FLOAT, [16, 4]))
    after, _ = store_constants(model)
    assert [value.name for value in after.graph.input] == ["x"]
    assert after.ir_version == 4
    assert_same_answers(model, after)


def test_every_node_gets_a_name_of_its_own() -> None:
    model = body_of([node("Relu", ["x"], ["a"], name="If_0"), node("Neg", ["a"], ["b"], name="it")], 17)
    after, _ = name_nodes(model)
    names = [one.name for one in all_nodes(after.graph)]
    assert len(set(names)) == len(names)
    assert names == ["ReduceMean_0", "Greater_0", "If_1", "If_0", "it", "Add_0", "Relu_0", "Neg_0"]
    assert_same_answers(model, after, rows=[{"x": np.full((2, 1, 4, 4), value, np.float32)} for value in (2, -3)])


def test_passes_that_have_nothing_to_do_return_the_model_itself() -> None:
    model = linear()
    for rewrite in (inline_functions, store_constants, name_nodes):
        assert rewrite(model) == (model, "")
        assert rewrite(model)[0] is model


def test_weights_leave_and_come_back() -> None:
    model = linear(width=512)
    before = model.SerializeToString()
    bare, weights = without_weights(model)
    assert list(weights) == ["W"]
    assert bare.ByteSize() < 1000 < model.ByteSize()
    onnx.checker.check_model(bare, full_check=True)
    back = with_weights(copy_of(bare), weights)
    assert back == model
    assert model.SerializeToString() == before
