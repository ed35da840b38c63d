"""A refusal lists every operator and every node that is not known, whoever refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ModelRefused
from engines.frontend.onnx import read
from engines.operators import listed
from engines.reference import Reference, unknown_operators
from engines.targets import openvino as target
from tests.passes.old_operators import OPERATORS, one_node
from tests.passes.test_small_passes import with_function
from tests.support.onnx_models import FLOAT

node = helper.make_node
value = helper.make_tensor_value_info


def strange() -> onnx.ModelProto:
    """Two Foo of another maker, a Bar that no opset has, and a Baz in a body; Relu and If are known."""
    body = helper.make_graph([node("Baz", ["x"], ["b"], name="in a body", domain="com.example")], "b", [],
                             [value("b", FLOAT, [2])])  # fmt: skip
    other = helper.make_graph([node("Relu", ["x"], ["e"], name="known")], "e", [], [value("e", FLOAT, [2])])
    nodes = [
        node("Foo", ["x"], ["a"], name="first", domain="com.example"),
        node("Foo", ["a"], ["b1"], name="second", domain="com.example"),
        node("Bar", ["b1"], ["nameless"]),
        node("If", ["c"], ["d"], name="if", then_branch=body, else_branch=other),
        node("Add", ["nameless", "d"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, [2]), value("c", 9, [])], [value("y", FLOAT, [2])])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


LIST = "com.example.Foo (nodes 'first', 'second'), Bar (node 'nameless'), com.example.Baz (node 'in a body')"


def test_openvino_lists_them_all() -> None:
    assert listed(target.unsupported(strange())) == LIST
    with pytest.raises(ModelRefused) as refused:
        target.read_model(strange())
    assert str(refused.value) == f"OpenVINO does not know these operators: {LIST}"


def test_onnx_runtime_lists_them_all() -> None:
    assert listed(unknown_operators(strange())) == LIST
    with pytest.raises(ModelRefused) as refused:
        Reference(strange())
    assert str(refused.value) == f"ONNX Runtime does not know these operators: {LIST}"


def test_what_is_known_is_not_listed() -> None:
    for model in (*OPERATORS.values(), with_function()):
        assert unknown_operators(model) == []
    assert target.unsupported(one_node("Relu", 21)) == []


def test_an_operator_without_code_in_its_version_is_listed() -> None:
    """ONNX Runtime's CPU code for Add begins with opset 7."""
    model = one_node("Relu", 6)
    model.graph.node[0].CopyFrom(node("Add", ["x", "x"], ["y"], name="old"))
    with pytest.raises(ModelRefused, match=r"^ONNX Runtime does not know these operators: Add \(node 'old'\)$"):
        Reference(model)


def test_an_operator_that_is_known_but_not_as_it_is_used_is_named_with_the_reason() -> None:
    weights = [np.zeros((1, 16, 3), np.float32), np.zeros((1, 16, 4), np.float32)]
    model = one_node("LSTM", 21, weights, shape=(5, 2, 3), hidden_size=4, direction="sideways")
    with pytest.raises(ModelRefused) as refused:
        target.read_model(model)
    said = str(refused.value)
    assert said.startswith("OpenVINO cannot convert these operators as they are used: LSTM (node 'it'): ")
    assert ".cpp" not in said
    assert len(said) > 85, "the reason is there"


def test_a_model_that_is_refused_for_another_cause_keeps_its_message() -> None:
    model = one_node("Relu", 21)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    with pytest.raises(ModelRefused, match=r"^ONNX Runtime refuses the model: .*tensor\(bool\)"):
        Reference(model)


def test_a_long_list_is_counted_at_its_end() -> None:
    said = listed([("Foo", f"n{i}") for i in range(60)])
    assert said.startswith("Foo (nodes 'n0', 'n1', ")
    assert said.endswith("'n49' and 10 more)")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_reading_a_file_lists_them_all(tmp_path: Path) -> None:
    """The checker of ONNX would name Bar, and not its node."""
    with pytest.raises(ModelRefused) as refused:
        read(saved(strange(), tmp_path))
    assert str(refused.value) == f"ONNX Runtime does not know these operators: {LIST}"


def test_reading_a_file_lists_those_in_functions(tmp_path: Path) -> None:
    model = with_function()
    model.functions[0].node[0].op_type = "NoSuch"
    with pytest.raises(ModelRefused, match=r"^ONNX Runtime does not know these operators: NoSuch \(node"):
        read(saved(model, tmp_path))


@pytest.mark.parametrize("opset", [26, 28])
def test_an_opset_that_is_too_new_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ModelRefused, match=f"^opset {opset} is newer than 25, the newest that is read here$"):
        read(saved(one_node("Relu", opset), tmp_path))
