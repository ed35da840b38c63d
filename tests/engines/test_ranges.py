"""What a graph demands of its inputs' values is read off the graph."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engines.frontend.ranges import checked_lookups, fails_on_values, from_shapes, index_ranges, takes_sizes_from_values
from tests.support.onnx_models import build, linear, slow, time_major_lstm

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
TABLE = {"table": np.zeros((5, 3), np.float32)}


def embedding(axis: int = 0, *, through: str | None = None) -> ModelProto:
    nodes = [helper.make_node("Gather", ["table", "j" if through else "i"], ["y"], axis=axis)]
    if through:
        attributes = {"to": INT64} if through == "Cast" else {}
        nodes.insert(0, helper.make_node(through, ["i"], ["j"], **attributes))
    return build(nodes, {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N", 3] if axis == 0 else [5, "N"])}, TABLE)


@pytest.mark.parametrize(("model", "rows"), [(embedding(), 5), (embedding(1), 3), (embedding(through="Cast"), 5)])
def test_an_index_is_bounded_by_its_table(model: ModelProto, rows: int) -> None:
    assert index_ranges(model) == {"i": (-rows, rows - 1)}


def test_the_narrowest_of_several_tables_holds() -> None:
    nodes = [helper.make_node("Gather", [table, "i"], [f"y{table}"]) for table in ("a", "b")]
    tables = {"a": np.zeros((9, 1), np.float32), "b": np.zeros((4, 1), np.float32)}
    outputs = {f"y{table}": (FLOAT, ["N", 1]) for table in tables}
    assert index_ranges(build(nodes, {"i": (INT64, ["N"])}, outputs, tables)) == {"i": (-4, 3)}


def test_arithmetic_on_an_index_proves_nothing() -> None:
    nodes = [helper.make_node("Add", ["i", "one"], ["j"]), helper.make_node("Gather", ["table", "j"], ["y"])]
    one = {"one": np.array([1], np.int64)}
    assert index_ranges(build(nodes, {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N", 3])}, {**TABLE, **one})) == {}


@pytest.mark.parametrize("model", [linear(), slow(8, 1), time_major_lstm(), embedding()])
def test_sizes_from_shapes_and_constants_are_no_matter_of_values(model: ModelProto) -> None:
    assert not takes_sizes_from_values(model)


def test_sizes_computed_from_values_are_found() -> None:
    nodes = [helper.make_node("Expand", ["x", "n"], ["y"])]
    model = build(nodes, {"x": (FLOAT, [1]), "n": (INT64, [1])}, {"y": (FLOAT, ["M"])})
    assert takes_sizes_from_values(model)


def test_a_reshape_to_a_shape_taken_from_another_tensor_is_not_one() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["z", "s"], ["y"])]
    model = build(nodes, {"x": (FLOAT, ["N", 2]), "z": (FLOAT, ["M"])}, {"y": (FLOAT, ["N", 2])})
    assert not takes_sizes_from_values(model)


def test_only_the_look_ups_by_an_input_are_checked_on_arrival() -> None:
    one = {"one": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["a"]),
        helper.make_node("Add", ["i", "one"], ["j"]),
        helper.make_node("Gather", ["table", "j"], ["b"]),
    ]
    outputs = {name: (FLOAT, ["N", 3]) for name in "ab"}
    assert checked_lookups(build(nodes, {"i": (INT64, ["N"])}, outputs, {**TABLE, **one})) == {"a"}


def test_a_cast_to_a_narrower_type_changes_values() -> None:
    nodes = [
        helper.make_node("Cast", ["i"], ["narrow"], to=TensorProto.INT8),
        helper.make_node("Cast", ["narrow"], ["j"], to=INT64),
        helper.make_node("Gather", ["table", "j"], ["y"]),
    ]
    assert index_ranges(build(nodes, {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N", 3])}, TABLE)) == {}


def test_what_is_computed_from_shapes_alone() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "k"], ["d"]),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    model = build(nodes, {"x": (FLOAT, ["N", 2])}, {"y": (FLOAT, ["N", 2])}, {"k": np.array(0, np.int64)})
    assert from_shapes(model) == {"", "k", "s", "d"}


def test_a_table_may_be_a_constant_node() -> None:
    constant = helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(TABLE["table"], "t"))
    model = build(
        [constant, helper.make_node("Gather", ["t", "i"], ["y"])], {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N", 3])}
    )
    assert index_ranges(model) == {"i": (-5, 4)}


@pytest.mark.parametrize("model", [linear(), slow(8, 1), time_major_lstm(), embedding()])
def test_values_that_cannot_make_a_run_fail(model: ModelProto) -> None:
    assert not fails_on_values(model)


def test_values_that_can() -> None:
    axis = {"x": (FLOAT, ["N", 4]), "a": (INT64, [])}
    assert fails_on_values(build([helper.make_node("CumSum", ["x", "a"], ["y"])], axis, {"y": (FLOAT, ["N", 4])}))
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=FLOAT)]
    assert fails_on_values(build(nodes, {"x": (FLOAT, ["N"])}, {"y": (FLOAT, [1, "K"])})), "a shape made of values"
    inner = helper.make_graph(
        [helper.make_node("CumSum", ["x", "a"], ["b"])], "body", [],
        [helper.make_tensor_value_info("b", FLOAT, ["N", 4])],
    )  # fmt: skip
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    assert fails_on_values(build([branch], axis, {"y": (FLOAT, ["N", 4])}, {"yes": np.array(True)}))
