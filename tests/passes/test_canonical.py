"""The verifier between passes: a pass that makes something else of a model is named, with the rule and the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engines.build
from engines import variants
from engines.canonical import Pass, canonical
from engines.errors import ModelRefused
from engines.graphs import copy_of
from engines.legality import PassFailed, Rewrite, checked_form
from engines.passes.names import name_nodes
from engines.reference import Reference
from engines.report import PassChange
from engines.spec import Spec
from tests.passes.answers import assert_same_answers
from tests.passes.test_fold_batchnorm import FOLDED
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build, linear

node = helper.make_node
RNG = np.random.default_rng(0)


def perceptron() -> onnx.ModelProto:
    """x -> first -> Relu -> second -> y, and the hidden values beside it."""
    nodes = [
        node("MatMul", ["x", "V"], ["h"], name="first"),
        node("Relu", ["h"], ["r"], name="relu"),
        node("MatMul", ["r", "W"], ["y"], name="second"),
    ]
    stored = {
        "V": RNG.standard_normal((8, 6), dtype=np.float32),
        "W": RNG.standard_normal((6, 4), dtype=np.float32),
    }
    outputs = {"y": (FLOAT, ["N", 4]), "r": (FLOAT, ["N", 6])}
    return build(nodes, {"x": (FLOAT, ["N", 8])}, outputs, stored, 21)


def on_a_copy(change: Callable[[onnx.ModelProto], object]) -> Rewrite:
    def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        copy = copy_of(model)
        change(copy)
        return copy, "changed"

    return rewrite


def drop_an_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def rename_an_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"


def widen_an_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "any"


def retype_an_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def change_a_weight(model: onnx.ModelProto) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "W"]
    weights = numpy_helper.to_array(tensor).copy()
    weights[2, 1] += np.float32(0.01)
    tensor.CopyFrom(numpy_helper.from_array(weights, "W"))


def swap_an_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Abs"


def leave_a_value_undefined(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "nowhere"


def put_nodes_out_of_order(model: onnx.ModelProto) -> None:
    first, second = copy_of(model).graph.node[:2]
    model.graph.node[0].CopyFrom(second)
    model.graph.node[1].CopyFrom(first)


def make_a_value_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Neg", ["x"], ["h"], name="again"))


def drop_the_maker_of_an_output(model: onnx.ModelProto) -> None:
    del model.graph.node[2]


def use_an_unknown_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("slope", 0.5))


def cut_a_weight_short(model: onnx.ModelProto) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "W"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:5], "W"))


DEFINED = "every value is made once, before it is read"
CHECKER = "the checker of ONNX accepts it"
WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str, str]] = {
    "output dropped": (drop_an_output, "same outputs", "", r"outputs were \['y', 'r'\], and are \['y'\]"),
    "input renamed": (rename_an_input, "same inputs", "", "inputs were"),
    "output widened": (widen_an_output, "same outputs", "", "output 'y' has another type or shape"),
    "output of another type": (retype_an_output, "same outputs", "", "output 'y' has another type or shape"),
    "weight changed": (change_a_weight, "same answers", "second", "output 'y' is off by .*first at node 'second'"),
    "operator swapped": (swap_an_operator, "same answers", "relu", "first at node 'relu'"),
    "value undefined": (leave_a_value_undefined, DEFINED, "second", "'second' .MatMul. reads 'nowhere', which nothing"),
    "out of order": (put_nodes_out_of_order, DEFINED, "relu", "'relu' .Relu. reads 'h'"),
    "made twice": (make_a_value_twice, DEFINED, "again", "makes 'h', which is there already"),
    "output not made": (drop_the_maker_of_an_output, DEFINED, "", "nothing makes output 'y'"),
    "attribute": (use_an_unknown_attribute, CHECKER, "", "slope"),
    "shapes do not fit": (cut_a_weight_short, CHECKER, "", "[Ii]ncompatible dimensions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_is_named(name: str) -> None:
    change, rule, where, words = WRONG[name]
    wrong = Pass("wrong pass", on_a_copy(change))
    passes = [Pass("name nodes", name_nodes), wrong, Pass("name again", name_nodes)]
    with pytest.raises(PassFailed, match=words) as failed:
        canonical(perceptron(), passes=passes)
    assert (failed.value.name, failed.value.rule, failed.value.node) == ("wrong pass", rule, where)
    assert f"pass 'wrong pass' broke the rule '{rule}': " in str(failed.value)
    assert isinstance(failed.value, ModelRefused)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_that_may_fail_is_left_out_with_a_note(name: str) -> None:
    change, rule, _, words = WRONG[name]
    model = perceptron()
    after, (said,) = canonical(model, passes=[Pass("wrong pass", on_a_copy(change), may_fail=True)])
    assert after is model
    assert said.note.startswith(f"left out: pass 'wrong pass' broke the rule '{rule}'")
    assert words.partition(r"\[")[0][:6] in said.note or "[Ii]" in words


def test_a_pass_that_raises_is_named() -> None:
    def broken(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        raise RuntimeError("out of luck\nat some line")

    with pytest.raises(PassFailed, match=r"pass 'broken' broke the rule 'it runs to its end': out of luck$"):
        canonical(perceptron(), passes=[Pass("broken", broken)])


def test_a_wrong_pass_is_told_from_the_right_ones_around_it() -> None:
    """Answers are compared once; which pass it was is found by running them again."""
    model = FOLDED["Conv with bias"]

    def wrong(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        copy = copy_of(model)
        copy.graph.node[0].attribute.append(helper.make_attribute("pads", [0, 0, 2, 2]))
        copy.graph.node[0].attribute.append(helper.make_attribute("dilations", [2, 2]))
        return copy, ""

    from engines.canonical import PASSES

    with pytest.raises(PassFailed) as failed:
        canonical(model, passes=[*PASSES[:4], Pass("shift pixels", wrong), *PASSES[4:]])
    assert (failed.value.name, failed.value.rule, failed.value.node) == ("shift pixels", "same answers", "main")


def test_what_each_pass_did_is_told() -> None:
    model = copy_of(FOLDED["Conv with bias"])
    model.graph.node[0].name = ""
    after, changes = canonical(model, Reference(model))
    assert changes == (
        PassChange("binary floats", 2, 2, {}, {}),
        PassChange("inline functions", 2, 2, {}, {}),
        PassChange("store constants", 2, 2, {}, {}),
        PassChange("couple gates", 2, 2, {}, {}),
        PassChange("opset 21", 2, 2, {}, {}),
        PassChange("store shapes", 2, 2, {}, {}),
        PassChange("name nodes", 2, 2, {}, {}),
        PassChange("fold batch norm", 2, 1, {"BatchNormalization": 1}, {}),
    )
    assert after.graph.node[0].name == "Conv_0"
    assert_same_answers(model, after)


def test_a_model_in_the_canonical_form_is_returned_as_it_is() -> None:
    model = perceptron()
    after, changes = canonical(model)
    assert after is model
    assert not any(change.note for change in changes)


def test_answers_that_cannot_be_compared_are_said_not_to_be() -> None:
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])]
    random = build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])})
    (note,) = {change.note for change in canonical(random)[1] if change.note}
    assert note == "answers were not compared: they are random"
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    asked = build(nodes, {"x": (FLOAT, [7]), "shape": (TensorProto.INT64, [2])}, {"y": (FLOAT, ["A", "B"])})
    (note,) = {change.note for change in canonical(asked)[1] if change.note}
    assert note.startswith("answers were not compared: no sample input could be run by ONNX Runtime")


def saturated(scale: float = 1e4) -> onnx.ModelProto:
    """The perceptron with a softmax of huge numbers, which is 1 at one place: a bias decides which."""
    model = perceptron()
    model.graph.node.extend(
        [node("Mul", ["y", "tiny"], ["t"]), node("Add", ["t", "bias"], ["b"]), node("Mul", ["b", "huge"], ["l"]),
         node("Softmax", ["l"], ["p"], axis=-1)],
    )  # fmt: skip
    numbers = {"tiny": np.float32(0.01), "bias": np.array([1, 0, 0, 0], np.float32), "huge": np.float32(scale)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("p", FLOAT, ["N", 4]))
    return model


def test_what_a_saturated_softmax_hides_is_looked_at() -> None:
    model = saturated()
    answers = [Reference(one)({"x": np.ones((1, 8), np.float32)})["p"] for one in (model, saturated(2e4))]
    np.testing.assert_array_equal(*answers)
    (change,) = canonical(model, passes=[Pass("name nodes", name_nodes)])[1]
    assert not change.note
    with pytest.raises(PassFailed, match="first at node 'second'"):
        canonical(model, passes=[Pass("wrong pass", on_a_copy(change_a_weight))])


def test_a_model_that_answers_all_samples_alike_is_said_to() -> None:
    nodes = [node("Mul", ["x", "zero"], ["m"]), node("Add", ["m", "c"], ["y"])]
    stored = {"zero": np.float32(0), "c": np.ones(4, np.float32)}
    model = build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4])}, stored)
    notes = [change.note for change in canonical(model)[1]]
    assert [notes[4], notes[6]] == ["every sample is answered alike, so that a change of the answers may not show"] * 2


def test_answers_that_are_only_rounding_are_compared_on_a_twin() -> None:
    """1e8 (h - 3) where h is nearly 3: folding moves the last bit of h, and that is all of the answer."""
    model = copy_of(FOLDED["Gemm"])
    nodes = [*model.graph.node, node("Sub", ["y", "y_again"], ["d"]), node("Mul", ["d", "huge"], ["z"])]
    again = [node("Gemm", ["x", "W2", "B"], ["h_again"]), node("BatchNormalization", ["h_again", *"gbmv"], ["y_again"])]
    del again[1].input[1:]
    again[1].input.extend(["gamma", "beta", "mean", "var"])
    again[1].attribute.append(helper.make_attribute("epsilon", 0.01))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "W")
    model.graph.initializer.append(
        numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.0000001), "W2")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e8), "huge"))
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], *again, *nodes[2:]])
    model.graph.output[0].name = "z"
    after, changes = canonical(model)
    assert changes[-1].removed == {"BatchNormalization": 2}
    assert changes[-1].note.startswith("answers are decided by rounding, so a twin with random weights was compared")
    assert after.graph.node[0].op_type == "Gemm"


def test_a_model_that_breaks_the_strict_check_already_is_not_blamed_on_a_pass() -> None:
    model = perceptron()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5  # ONNX Runtime only warns of it
    model.opset_import[0].version = 17
    with pytest.raises(Exception, match="differ"):
        onnx.checker.check_model(model, full_check=True)
    after, changes = canonical(model)
    assert after.opset_import[0].version == 21
    assert not any(change.note for change in changes)


@pytest.mark.parametrize("name", [name for name in WRONG if WRONG[name][1] != "same answers"])
def test_a_pass_outside_of_these_is_named_alike(name: str) -> None:
    change, rule, where, words = WRONG[name]
    before = perceptron()
    after, _ = on_a_copy(change)(before)
    with pytest.raises(PassFailed, match=words) as failed:
        checked_form("half", before, after)
    assert (failed.value.name, failed.value.rule, failed.value.node) == ("half", rule, where)
    if name == "output widened":
        assert checked_form("half", before, after, new_types=True) is after
    else:
        with pytest.raises(PassFailed):
            checked_form("half", before, after, new_types=True)


def test_what_was_broken_before_is_not_the_pass_s_fault() -> None:
    before = perceptron()
    use_an_unknown_attribute(before)
    after = copy_of(before)
    assert checked_form("half", before, after) is after


def nowhere(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copy_of(model)
    copy.graph.node[0].input[0] = "nowhere"
    return copy


def test_forms_of_fewer_bits_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "store_half", lambda model: (nowhere(model), ""))
    with pytest.raises(PassFailed, match=r"pass 'store half' broke the rule .*node 'first' \(MatMul\) reads 'nowhere'"):
        variants.half_variant(perceptron())


@pytest.mark.parametrize(
    ("changed", "spec", "said"),
    [
        ("with_shapes", Spec(shapes={"x": (16,)}), "shapes"),
        ("widen_halves", Spec(), "widen halves"),
    ],
)
def test_what_a_build_makes_of_inputs_is_looked_at(
    changed: str, spec: Spec, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(model: onnx.ModelProto, *_: object) -> object:
        return (nowhere(model), "a note") if changed == "widen_halves" else nowhere(model)

    monkeypatch.setattr(engines.build, changed, broken)
    with pytest.raises(PassFailed, match=f"pass '{said}' broke the rule .* reads 'nowhere'"):
        built(tmp_path, linear(), spec)
