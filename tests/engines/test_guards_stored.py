"""Stored whole numbers beyond 32 bits where samples do not come, signs that turn over, and division by zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ValuesRefused
from engines.passes.guards import with_guards
from engines.reference import Arrays, Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node
WIDE = 2**40
SMALL = np.array([[1.0, 2.0]], F32)
LARGE = np.array([[1e7, 2.0]], F32)


def judge(built: Build, model: onnx.ModelProto, good: Arrays, bad: Arrays, what: str) -> None:
    done, reference = built(model), Reference(model)
    for _ in range(2):
        for name, want in reference(good).items():
            np.testing.assert_array_equal(done.answer(good)[0][name], want)
        with pytest.raises(ValuesRefused, match=what):
            done.answer(good, bad)


def branch(name: str, nodes: list[NodeProto]) -> GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, INT64, [1])])


def constant(name: str, value: int) -> NodeProto:
    return make("Constant", [], [name], value=numpy_helper.from_array(np.array([value])))


@pytest.mark.parametrize("through", ["", "ConstantOfShape", "Expand"])
def test_a_number_that_a_where_chooses_seldom(through: str, built: Build) -> None:
    fill = helper.make_tensor("fill", INT64, [1], [WIDE])
    made = {
        "": [], "Expand": [make("Shape", ["i"], ["s"]), make("Expand", ["wide", "s"], ["w"])],
        "ConstantOfShape": [make("Shape", ["i"], ["s"]), make("ConstantOfShape", ["s"], ["w"], value=fill)],
    }[through]  # fmt: skip
    nodes = [
        *made, make("Greater", ["x", "many"], ["c"]),
        make("Where", ["c", "w" if made else "wide", "i"], ["y"], name="choice"),
    ]  # fmt: skip
    constants = {"many": np.array(1e6, F32), "wide": np.array(WIDE)}
    model = build(nodes, {"x": (FLOAT, ["N", 2]), "i": (INT64, ["N", 2])}, {"y": (INT64, ["N", 2])}, constants)
    i = np.array([[3, 4]])
    judge(built, model, {"x": SMALL, "i": i}, {"x": LARGE, "i": i}, "Where 'choice' takes a stored integer beyond 32")


@pytest.mark.parametrize("op", ["Gather", "GatherElements", "GatherND"])
def test_a_number_in_a_table(op: str, built: Build) -> None:
    table = {"table": np.array([7] * 2000 + [WIDE + 5])}
    model = build([make(op, ["table", "i"], ["y"], name="words")],
                  {"i": (INT64, ["N", 1] if op == "GatherND" else ["N"])}, {"y": (INT64, ["N"])}, table)  # fmt: skip
    good, bad = ({"i": np.array([[n]] if op == "GatherND" else [n])} for n in (1999, 2000))
    judge(built, model, good, bad, f"{op} 'words' takes a stored integer beyond 32 bits")


@pytest.mark.parametrize("moved", [False, True])
def test_a_number_in_a_branch(moved: bool, built: Build) -> None:
    then = [make("Identity", ["wide"], ["a"])] if moved else [constant("a", WIDE)]
    branches = {"then_branch": branch("a", then), "else_branch": branch("b", [constant("b", 1)])}
    nodes = [
        make("ReduceMax", ["x"], ["most"], keepdims=0), make("Greater", ["most", "many"], ["c"]),
        make("If", ["c"], ["y"], name="fork", **branches),
    ]  # fmt: skip
    constants = {"many": np.array(1e6, F32), "wide": np.array([WIDE])}
    model = build(nodes, {"x": (FLOAT, ["N", 2])}, {"y": (INT64, [1])}, constants)
    judge(built, model, {"x": SMALL}, {"x": LARGE}, "If 'fork'")


def test_a_number_that_every_sample_takes_without_harm_is_let_through(built: Build) -> None:
    nodes = [
        make("Where", ["hidden", "least", "zero"], ["far"]), make("Cast", ["far"], ["bias"], to=FLOAT),
        make("Add", ["x", "bias"], ["masked"]), make("Softmax", ["masked"], ["y"], axis=1),
    ]  # fmt: skip
    inputs = {"x": (FLOAT, ["N", 64]), "hidden": (BOOL, ["N", 64])}
    model = build(nodes, inputs, {"y": (FLOAT, ["N", 64])}, {"least": np.array(-(2**63)), "zero": np.array(0)})
    done, ask = built(model), {"x": np.arange(64, dtype=F32)[None] / 64, "hidden": np.arange(64)[None] % 3 == 0}
    np.testing.assert_allclose(done.answer(ask)[0]["y"], Reference(model)(ask)["y"], rtol=1e-5)
    assert any("takes a stored integer beyond 32 bits" in note for note in done.manifest.notes)


def test_ends_of_slices_are_no_data() -> None:
    nodes = [make("Slice", ["x", "one", "end", "one"], ["y"])]
    constants = {"one": np.array([1]), "end": np.array([2**63 - 1])}
    model = build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 3])}, constants)
    assert with_guards(model)[1] == ()


@pytest.mark.parametrize("op", ["Neg", "Abs"])
def test_the_least_number_has_no_positive(op: str, built: Build) -> None:
    model = build([make(op, ["i"], ["y"], name="sign")], {"i": (INT64, ["N", 2])}, {"y": (INT64, ["N", 2])})
    good, bad = ({"i": np.array([[least, 2**24 + 1]])} for least in (1 - 2**31, -(2**31)))
    judge(built, model, good, bad, f"{op} 'sign' gives an integer beyond 32 bits")


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("kind", [TensorProto.INT32, INT64])
def test_nothing_is_divided_by_zero(op: str, kind: int, built: Build) -> None:
    model = build([make(op, ["i", "j"], ["y"], name="shared")], {"i": (kind, ["N", 2]), "j": (kind, ["N", 2])},
                  {"y": (kind, ["N", 2])})  # fmt: skip
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    good, bad = ({"i": np.array([[7, -8]], dtype), "j": np.array([[2, last]], dtype)} for last in (4, 0))
    judge(built, model, good, bad, f"{op} 'shared' divides by zero")
