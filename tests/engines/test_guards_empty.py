"""Empty tensors, turns that are not made, pieces below nothing: the engine answers from an earlier run's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import GraphProto, TensorProto, helper

from engines.errors import EngineError, ValuesRefused
from engines.reference import Arrays, Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node
TAIL = make("Slice", ["x", "one", "far"], ["tail"])
CONSTANTS = {"one": np.array([1]), "far": np.array([2**30]), "zero": np.array(0)}


def same(done: Built, model: onnx.ModelProto, asks: Sequence[Arrays]) -> None:
    """All sent to one session: an answer left from the request before would show."""
    reference = Reference(model)
    for ask, answer in zip(asks, done.answer(*asks), strict=True):
        for name, want in reference(ask).items():
            np.testing.assert_allclose(answer[name], want, rtol=1e-5, atol=1e-6)


def refused(done: Built, good: Arrays, bad: Arrays, what: str) -> None:
    with pytest.raises(EngineError, match=what):
        done.answer(good, bad)


@pytest.mark.parametrize("op", ["Gather", "ArgMax", "TopK", "LSTM"])
def test_nothing_is_taken_out_of_an_empty_tensor(op: str, built: Build) -> None:
    """All but the first row are looked at, and one row alone leaves none."""
    rng = np.random.default_rng(0)
    constants = {**CONSTANTS, "k": np.array([1]), "W": rng.standard_normal((1, 8, 3)).astype(F32),
                 "R": rng.standard_normal((1, 8, 2)).astype(F32)}  # fmt: skip
    shape: list[int | str] = ["T", 1, 3]
    node, kind, out = {
        "Gather": (make("Gather", ["tail", "zero"], ["y"]), FLOAT, [1, 3]),
        "ArgMax": (make("ArgMax", ["tail"], ["y"], axis=0, keepdims=0), INT64, [1, 3]),
        "TopK": (make("TopK", ["tail", "k"], ["y", "i"], axis=0), FLOAT, [1, 1, 3]),
        "LSTM": (make("LSTM", ["tail", "W", "R"], ["", "y"], hidden_size=2), FLOAT, [1, 1, 2]),
    }[op]
    node.name = "taker"
    model = build([TAIL, node], {"x": (FLOAT, shape)}, {"y": (kind, out)}, constants)
    done = built(model)
    asks = [{"x": rng.standard_normal((rows, 1, 3)).astype(F32)} for rows in (4, 2, 1)]
    same(done, model, asks[:2])
    refused(done, asks[0], asks[2], f"{op} 'taker' (takes something out of an empty|looks up an index outside)")


def test_a_choice_among_none_of_several_is_empty_and_right(built: Build) -> None:
    """Detectors keep none of their boxes: the best class of each of none is none."""
    nodes = [
        make("NonZero", ["keep"], ["where"]), make("Squeeze", ["where", "first"], ["kept"]),
        make("Gather", ["scores", "kept"], ["left"]), make("ArgMax", ["left"], ["y"], axis=1, keepdims=0),
    ]  # fmt: skip
    inputs = {"scores": (FLOAT, ["K", 4]), "keep": (BOOL, ["K"])}
    model = build(nodes, inputs, {"y": (INT64, ["L"])}, {"first": np.array([0])})
    done = built(model)
    scores = np.random.default_rng(0).standard_normal((3, 4)).astype(F32)
    same(done, model, [{"scores": scores, "keep": np.array(keep)} for keep in ([True] * 3, [False] * 3)])


def loop(scans: bool, index: bool = False) -> GraphProto:
    ins = [("step", INT64, []), ("go", BOOL, []), ("total", FLOAT, [2])]
    outs = [("go_on", BOOL, []), ("sum", FLOAT, [2]), *([("seen", FLOAT, [2])] if scans else [])]
    nodes = [make("Identity", ["go"], ["go_on"])]
    nodes += [make("Gather", ["x", "step"], ["one_of"])] if index else []
    nodes += [make("Add", ["total", "one_of" if index else "total"], ["sum"])]
    nodes += [make("Identity", ["sum"], ["seen"])] if scans else []
    return helper.make_graph(
        nodes, "body", *([helper.make_tensor_value_info(*one) for one in side] for side in (ins, outs))
    )


INPUTS = {"n": (INT64, []), "go": (BOOL, []), "x": (FLOAT, [2])}


def asked(turns: int, go: bool = True) -> Arrays:
    return {"n": np.array(turns), "go": np.array(go), "x": np.ones(2, F32)}


def test_what_a_loop_collects_in_no_turn_is_refused(built: Build) -> None:
    node = make("Loop", ["n", "go", "x"], ["y", "z"], body=loop(scans=True), name="turner")
    done = built(build([node], INPUTS, {"y": (FLOAT, [2]), "z": (FLOAT, ["K", 2])}))
    assert done.answer(asked(3))[0]["z"].shape == (3, 2)
    for none in (asked(0), asked(-1), asked(3, go=False)):
        refused(done, asked(3), none, "Loop 'turner'")


def test_what_a_loop_carries_through_no_turn_is_what_came_in(built: Build) -> None:
    """A negative number of turns is none; the engine would go on for ever."""
    node = make("Loop", ["n", "go", "x"], ["y"], body=loop(scans=False))
    model = build([node], INPUTS, {"y": (FLOAT, [2])})
    same(built(model), model, [asked(3), asked(0), asked(2), asked(-1), asked(5, go=False)])


def test_the_guard_of_a_loop_speaks_of_this_run_alone(built: Build) -> None:
    node = make("Loop", ["n", "", "x"], ["y"], body=loop(scans=False, index=True))
    model = build([node], {"n": (INT64, []), "x": (FLOAT, [2])}, {"y": (FLOAT, [2])})
    done = built(model)
    good, bad, none = ({k: v for k, v in asked(turns).items() if k != "go"} for turns in (2, 3, 0))
    with pytest.raises(ValuesRefused):
        done.answer(bad)
    session_answers = done.answer_all([good, bad, none])
    assert isinstance(session_answers[1], ValuesRefused)
    np.testing.assert_array_equal(session_answers[2]["y"], none["x"])


def test_pieces_below_nothing_are_refused(built: Build) -> None:
    nodes = [
        make("Shape", ["x"], ["all"]), make("Sub", ["all", "k"], ["rest"]),
        make("Concat", ["k", "rest"], ["s"], axis=0),
        make("Split", ["x", "s"], ["a", "b"], axis=0, name="cutter"),
    ]  # fmt: skip
    model = build(nodes, {"x": (FLOAT, ["T"]), "k": (INT64, [1])}, {"a": (FLOAT, ["A"]), "b": (FLOAT, ["B"])})
    done = built(model)
    x = np.arange(4, dtype=F32)
    same(done, model, [{"x": x, "k": np.array([k])} for k in (1, 4, 0)])
    for size in (-1, 5, -(2**30)):
        refused(
            done, {"x": x, "k": np.array([2])}, {"x": x, "k": np.array([size])}, "Split 'cutter'|Total length of splits"
        )


def test_a_condition_longer_than_what_it_selects_from(built: Build) -> None:
    node = make("Compress", ["x", "c"], ["y"], axis=0, name="chooser")
    model = build([node], {"x": (FLOAT, ["T"]), "c": (BOOL, ["C"])}, {"y": (FLOAT, ["K"])})
    done = built(model)
    x = np.arange(4, dtype=F32)
    same(done, model, [{"x": x, "c": np.array(c)} for c in ([True, False, True, True], [False, True])])
    refused(done, {"x": x, "c": np.array([True])}, {"x": x, "c": np.array([True] * 6)}, "Compress 'chooser'")


def test_a_region_of_an_image_that_is_not_there(built: Build) -> None:
    node = make("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[1, 1], name="pool")
    model = build(
        [make("Abs", ["r"], ["some"]), make("Clip", ["some", "", "most"], ["rois"]), node],
        {"x": (FLOAT, ["N", 1, 4, 4]), "r": (FLOAT, ["K", 5])}, {"y": (FLOAT, ["K", 1, 1, 1])},
        {"most": np.array(3, F32)},
    )  # fmt: skip
    done = built(model)
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(F32)
    good, bad = ({"x": x, "r": np.array([[image, 0, 0, 3, 3]], F32)} for image in (1, 2))
    same(done, model, [good])
    refused(done, good, bad, "MaxRoiPool 'pool'")
