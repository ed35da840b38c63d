"""Which nodes run in half precision, and the reasons of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper

from engines.passes import half_rules
from engines.passes.half_choice import choose_halves
from tests.passes.networks import encoder, recurrent
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4), dtype=F32)
SQUARE: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, [4, 4])}


def chosen(model: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> tuple[list[str], dict[str, str]]:
    """Operators that run in half, in order, and the reasons of the others by operator."""
    choice = choose_halves(model, keep)
    nodes = model.graph.node
    return [nodes[i].op_type for i in sorted(choice.half)], {nodes[i].op_type: r for i, r in choice.kept.items()}


def between_products(
    *nodes: onnx.NodeProto, stored: dict[str, np.ndarray] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """x -> MatMul -> a, the nodes, which make b of it -> MatMul -> y."""
    whole = [node("MatMul", ["x", "W"], ["a"], "first"), *nodes, node("MatMul", ["b", "W"], ["y"], "last")]
    return build(whole, SQUARE, {"y": (FLOAT, [4, 4])}, {"W": W, **(stored or {})}, 21)


def test_every_operator_of_the_tables_is_one_of_onnx() -> None:
    named = half_rules.KEPT.keys() | half_rules.WEIGHTED | half_rules.EXACT | half_rules.CARRIERS
    assert [name for name in sorted(named) if not defs.has(name, "")] == []
    assert not half_rules.KEPT.keys() & (half_rules.WEIGHTED | half_rules.EXACT)


@pytest.mark.parametrize("op_type", ["Softmax", "Exp", "Log", "Sqrt", "Sin", "Floor", "Reciprocal"])
def test_range_sensitive_operators_stay(op_type: str) -> None:
    halves, kept = chosen(between_products(node(op_type, ["a"], ["b"], "sensitive")))
    assert halves == ["MatMul", "MatMul"]
    assert kept == {op_type: half_rules.KEPT[op_type]}


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Tanh", "Neg", "Identity"])
def test_others_run_in_half_between_layers(op_type: str) -> None:
    halves, kept = chosen(between_products(node(op_type, ["a"], ["b"])))
    assert (halves, kept) == (["MatMul", op_type, "MatMul"], {})


def test_squares_stay_and_so_do_divisions_by_what_is_computed() -> None:
    assert chosen(between_products(node("Mul", ["a", "a"], ["b"])))[1] == {"Mul": half_rules.KEPT["Pow"]}
    assert chosen(between_products(node("Div", ["a", "x"], ["b"])))[1] == {"Div": half_rules.KEPT["Reciprocal"]}
    by_a_constant = between_products(node("Div", ["a", "root"], ["b"]), stored={"root": F32(8)})
    assert chosen(by_a_constant) == (["MatMul", "Div", "MatMul"], {})


def test_nothing_goes_to_half_and_back_between_two_that_stay() -> None:
    softened = [node("Softmax", ["a"], ["s"]), node("Mul", ["s", "two"], ["m"]), node("Log", ["m"], ["b"])]
    halves, kept = chosen(between_products(*softened, stored={"two": F32(2)}))
    assert halves == ["MatMul", "MatMul"]
    assert kept["Mul"] == "nothing beside it runs in half"


def test_trees_stay_whole() -> None:
    """Gather features, compare with thresholds, add leaves up: nothing has weights, and branches must not flip."""
    nodes = [
        node("Gather", ["x", "features"], ["f"], axis=1), node("Less", ["f", "thresholds"], ["left"]),
        node("Cast", ["left"], ["branch"], to=FLOAT), node("Mul", ["branch", "leaves"], ["scored"]),
        node("ReduceSum", ["scored", "one"], ["y"], keepdims=0),
    ]  # fmt: skip
    stored = {
        "features": np.array([0, 2, 3]), "thresholds": RNG.standard_normal(3, dtype=F32),
        "leaves": RNG.standard_normal(3, dtype=F32), "one": np.array([1]),
    }  # fmt: skip
    assert chosen(build(nodes, SQUARE, {"y": (FLOAT, [4])}, stored, 21))[0] == []


def test_thresholds_that_are_looked_up_stay_too() -> None:
    nodes = [
        node("Gather", ["table", "i"], ["t"]), node("MatMul", ["x", "W"], ["a"]), node("Less", ["a", "t"], ["y"]),
    ]  # fmt: skip
    inputs = {**SQUARE, "i": (TensorProto.INT64, [4])}
    model = build(nodes, inputs, {"y": (TensorProto.BOOL, [4, 4])}, {"table": W, "W": W}, 21)
    halves, kept = chosen(model)
    assert halves == ["MatMul"]
    assert kept.keys() == {"Gather", "Less"}


def test_a_table_of_embeddings_is_half() -> None:
    model = encoder(opset=18)
    assert "Gather" in chosen(model)[0]


@pytest.mark.parametrize(
    ("value", "said"), [(3e38, "half 65504 at most"), (65520.0, "half 65504 at most"), (2.0**-25, "would be 0 in half")]
)
def test_a_constant_that_half_cannot_hold(value: float, said: str) -> None:
    halves, kept = chosen(between_products(node("Add", ["a", "c"], ["b"]), stored={"c": np.array([0, value], F32)[1:]}))
    assert "Add" not in halves
    assert said in kept["Add"]


@pytest.mark.parametrize("value", [65504.0, 65519.0, 2.0**-24, np.inf, 0.0])
def test_a_constant_that_half_holds(value: float) -> None:
    model = between_products(node("Add", ["a", "c"], ["b"]), stored={"c": np.array([value], F32)})
    assert "Add" in chosen(model)[0]


def test_a_clip_without_an_end_is_half() -> None:
    """As older exports write a ReLU: its upper bound is the largest FP32 number. A lower one of 1e-12 is meant."""
    ends = {"low": F32(0), "high": np.finfo(F32).max}
    assert "Clip" in chosen(between_products(node("Clip", ["a", "low", "high"], ["b"]), stored=ends))[0]
    ends["low"] = F32(1e-12)
    assert "would be 0" in chosen(between_products(node("Clip", ["a", "low", "high"], ["b"]), stored=ends))[1]["Clip"]


def test_what_a_mask_goes_into_stays_until_something_bounds_it() -> None:
    """-3e38 x (1 - mask) + scores: in half, the sum would be infinite, and a row of it NaN behind the softmax."""
    nodes = [
        node("Sub", ["one", "mask"], ["off"]), node("Mul", ["off", "low"], ["bias"]),
        node("Reshape", ["bias", "s"], ["r"]),
        node("MatMul", ["x", "W"], ["a"]), node("Add", ["a", "r"], ["masked"]), node("Softmax", ["masked"], ["p"]),
        node("MatMul", ["p", "W"], ["y"]),
    ]  # fmt: skip
    stored = {"one": F32(1), "low": F32(-3e38), "s": np.array([4, 4]), "W": W}
    model = build(nodes, {**SQUARE, "mask": (FLOAT, [4, 4])}, {"y": (FLOAT, [4, 4])}, stored, 21)
    halves, kept = chosen(model)
    assert halves == ["MatMul", "MatMul"]
    assert kept["Add"] == kept["Reshape"] == "a constant beyond 65504 may have gone into what it reads"


def test_what_computes_with_sizes_stays() -> None:
    """Scaled positions, as a position encoding has them: 2049 is no half."""
    nodes = [
        node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "zero"], ["n"]),
        node("Range", ["zero", "n", "step"], ["i"]), node("Cast", ["i"], ["position"], to=FLOAT),
        node("Unsqueeze", ["position", "axis"], ["p"]), node("MatMul", ["p", "frequencies"], ["angles"]),
        node("Sin", ["angles"], ["s"]), node("MatMul", ["x", "W"], ["a"]), node("Add", ["a", "s"], ["y"]),
    ]  # fmt: skip
    stored = {
        "zero": np.array(0), "step": np.array(1), "axis": np.array([1]), "W": W,
        "frequencies": RNG.standard_normal((1, 4), dtype=F32),
    }  # fmt: skip
    model = build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, stored, 21)
    choice = choose_halves(model)
    names = {model.graph.node[i].output[0] for i in choice.half}
    assert names == {"a", "y"}


def test_lengths_keep_a_recurrent_layer_and_nothing_else_does() -> None:
    assert chosen(recurrent("LSTM"))[0].count("LSTM") == 2
    halves, kept = chosen(recurrent("GRU", with_lengths=True))
    assert "GRU" not in halves
    assert "sequence_lens" in kept["GRU"]


def test_kept_by_name() -> None:
    model = between_products(node("Relu", ["a"], ["b"], "relu"))
    assert chosen(model, frozenset({"first"}))[0] == ["Relu", "MatMul"]
    assert chosen(model, frozenset({"first", "relu", "last"})) == (
        [], {"MatMul": "it is to stay in FP32", "Relu": "it is to stay in FP32"},
    )  # fmt: skip


def test_other_domains_and_what_they_make_of_unknown_type() -> None:
    foreign = node("Mystery", ["a"], ["m"], domain="com.example")
    model = between_products(node("Relu", ["a"], ["b"]))
    model.graph.node.insert(1, foreign)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node[2].input[0] = "m"
    halves, kept = chosen(model)
    assert halves == ["MatMul", "MatMul"], "the last product has the type of its weights, whatever it reads"
    assert kept == {"Mystery": "it is no operator of ONNX", "Relu": kept["Relu"]}
    assert "unknown" in kept["Relu"]
