"""Every operator whose form changed comes to opset 21 with the same meaning. ONNX Runtime is the judge."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.canonical import canonical
from engines.graphs import all_nodes, copy_of, opset_of
from engines.passes.opset import IR_VERSION, OPSET, to_opset_21
from tests.passes.answers import assert_same_answers, operators
from tests.passes.old_operators import OPERATORS, one_node
from tests.support.onnx_models import FLOAT, build

KEPT = {
    "Resize 10 nearest": "opset 10 is kept: Resize 'it' enlarges one axis and shrinks another",
    "Scan 8": "opset 8 is kept: Scan of opset 8 has no form in later ones",
}
node = helper.make_node


def of_variable_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copy_of(model)
    for axis, dim in enumerate(copy.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"d{axis}"
    return copy


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_its_meaning(name: str) -> None:
    model = OPERATORS[name]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rows = [{"x": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)} for seed in range(2)]
    rows = [{"x": row["x"] + np.float32(0.3 * sign)} for row, sign in zip(rows, (1, -1), strict=True)]
    before = model.SerializeToString()
    for given in (model, of_variable_shape(model)):
        converted, note = to_opset_21(given)
        assert note == KEPT.get(name, "")
        assert opset_of(converted) == (opset_of(model) if note else OPSET)
        assert converted.ir_version >= (8 if note else IR_VERSION)
        assert_same_answers(given, converted, rows=rows)
    assert model.SerializeToString() == before, "a pass leaves the model that it was given as it was"


@pytest.mark.parametrize("name", OPERATORS)
def test_the_verified_passes_take_it_too(name: str) -> None:
    """Whatever happens to one operator, the model is there at the end, and a note says what was not done."""
    model = OPERATORS[name]
    after, changes = canonical(model)
    assert [change.name for change in changes] == [
        "binary floats", "inline functions", "store constants", "couple gates", "opset 21", "store shapes",
        "name nodes", "fold batch norm",
    ]  # fmt: skip
    assert {change.name: change.note for change in changes if change.note} == (
        {"opset 21": KEPT[name]} if name in KEPT else {}
    )
    assert all(one.name for one in all_nodes(after.graph))


@pytest.mark.parametrize("opset", range(7, 26))
def test_every_opset_from_7_to_25(opset: int) -> None:
    rng = np.random.default_rng(opset)
    stored = {
        "K": rng.standard_normal((4, 3, 3, 3), dtype=np.float32),
        **{name: rng.uniform(0.5, 1.5, 4).astype(np.float32) for name in "sbmv"},
        "W": rng.standard_normal((16, 5), dtype=np.float32),
        "c": rng.standard_normal(5, dtype=np.float32),
    }
    nodes = [
        node("Conv", ["x", "K"], ["k"]),
        node("BatchNormalization", ["k", *"sbmv"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "W", "c"], ["g"]),
        node("Softmax", ["g"], ["y"], axis=1),
    ]
    model = build(nodes, {"x": (FLOAT, ["N", 3, 6, 6])}, {"y": (FLOAT, ["N", 5])}, stored, opset)
    after, changes = canonical(model)
    assert opset_of(after) == OPSET
    assert not any(change.note for change in changes)
    assert changes[-1].removed == {"BatchNormalization": 1}
    assert "BatchNormalization" not in operators(after)
    assert_same_answers(model, after)


def test_newer_opsets_are_left_alone() -> None:
    model = one_node("Relu", 21)
    model.opset_import[0].version = 26
    after, note = to_opset_21(model)
    assert after is model
    assert note == "opset 26 is kept: conversion is from opset 1 to 25"


def test_a_model_without_standard_operators_has_nothing_to_convert() -> None:
    model = one_node("Relu", 21)
    model.opset_import[0].domain = "com.example"
    assert to_opset_21(model) == (model, "")


def test_a_newer_operator_without_a_form_keeps_its_opset() -> None:
    inputs = {"x": (FLOAT, [1, 1, 4, 2]), "u": (FLOAT, [1, 1, 1, 2])}
    model = build(
        [node("TensorScatter", ["x", "u"], ["y"], name="cache")], inputs, {"y": (FLOAT, [1, 1, 4, 2])}, opset=24
    )
    after, note = to_opset_21(model)
    assert after is model
    assert note == "opset 24 is kept: TensorScatter (node 'cache') has no form in opset 21"


def test_an_attribute_that_came_later_keeps_the_opset_with_the_rule_that_says_so() -> None:
    model = one_node("Cast", 24, kind=TensorProto.INT32, to=TensorProto.INT32, round_mode="up")
    after, changes = canonical(model)
    assert opset_of(after) == 24
    (note,) = [change.note for change in changes if change.name == "opset 21"]
    assert note.startswith("left out: pass 'opset 21' broke the rule 'the checker of ONNX accepts it'")
    assert "round_mode" in note


def test_a_converter_that_gives_up_is_quoted() -> None:
    stats = [np.ones((3, 4, 4), np.float32)] * 4
    model = one_node("BatchNormalization", 7, stats, spatial=0)
    after, note = to_opset_21(model)
    assert after is model
    assert note.startswith("opset 7 is kept: the converter of ONNX says: ")
    assert "/project" not in note


def test_scales_that_are_computed_keep_the_opset() -> None:
    nodes = [node("Identity", ["s"], ["t"]), node("Resize", ["x", "t"], ["y"], name="grow", mode="nearest")]
    stored = {"s": np.array([1, 1, 2, 2], np.float32)}
    model = build(nodes, {"x": (FLOAT, [1, 1, 2, 2])}, {"y": (FLOAT, [1, 1, 4, 4])}, stored, 10)
    assert to_opset_21(model)[1] == "opset 10 is kept: the scales of Resize 'grow' are computed"


def test_shrinking_by_the_nearest_pixel_takes_the_one_above() -> None:
    model = one_node("Resize", 10, [np.array([1, 1, 0.6, 0.6], np.float32)], shape=(1, 1, 10, 10), mode="nearest")
    assert_same_answers(model, to_opset_21(model)[0])


def test_operators_of_other_makers_come_through() -> None:
    nodes = [node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]), node("Relu", ["s"], ["y"])]
    model = build([nodes[1]], {"s": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, opset=11)
    model.graph.node.insert(0, nodes[0])
    model.graph.input[0].name = "x"
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    after, changes = canonical(model)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 21, "ai.onnx.ml": 3}
    assert not any(change.note for change in changes)
    assert_same_answers(model, after)
