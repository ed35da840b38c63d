"""Numbers that say how many, how long, how far or along which axis: what a client sends there is its own fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ValuesRefused
from engines.reference import Arrays, Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build, place
from tests.support.servers import running

INT64 = TensorProto.INT64
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node

BOXES = np.array([[[0, 0, 1, 1], [0, 0, 1, 1.05], [5, 5, 6, 6]]], F32)
SCORES = np.array([[[0.9, 0.8, 0.7]]], F32)
THRESHOLDS = {"iou": np.array([0.5], F32), "least": np.array([0], F32)}


def same(done: Built, model: onnx.ModelProto, asks: list[Arrays]) -> None:
    """All sent to one session: an answer left from the request before would show."""
    reference = Reference(model)
    for ask, answer in zip(asks, done.answer(*asks), strict=True):
        for name, want in reference(ask).items():
            np.testing.assert_array_equal(answer[name], want)


@pytest.mark.parametrize("computed", [False, True])
def test_a_negative_limit_of_boxes_is_none(computed: bool, built: Build) -> None:
    nodes = [make("NonMaxSuppression", ["b", "s", "k" if computed else "m", "iou", "least"], ["y"])]
    nodes = [make("Sub", ["m", "two"], ["k"]), *nodes] if computed else nodes
    inputs = {"b": (FLOAT, [1, "K", 4]), "s": (FLOAT, [1, 1, "K"]), "m": (INT64, [1])}
    model = build(nodes, inputs, {"y": (INT64, ["S", 3])}, {**THRESHOLDS, "two": np.array([2])})
    same(built(model), model, [{"b": BOXES, "s": SCORES, "m": np.array([m])} for m in (5, 1, 3, -1, 4, 0, -4, 2)])


def test_a_stored_negative_limit_of_boxes(built: Build) -> None:
    model = build(
        [make("NonMaxSuppression", ["b", "s", "m", "iou", "least"], ["y"])],
        {"b": (FLOAT, [1, "K", 4]), "s": (FLOAT, [1, 1, "K"])}, {"y": (INT64, ["S", 3])},
        {**THRESHOLDS, "m": np.array([-1])},
    )  # fmt: skip
    same(built(model), model, [{"b": BOXES, "s": SCORES}])


@pytest.mark.parametrize("upper", [0, 1])
def test_a_diagonal_beyond_all_others(upper: int, built: Build) -> None:
    model = build([make("Trilu", ["x", "k"], ["y"], upper=upper)], {"x": (FLOAT, ["N", 3, 3]), "k": (INT64, [])},
                  {"y": (FLOAT, ["N", 3, 3])})  # fmt: skip
    x = np.arange(1, 10, dtype=F32).reshape(1, 3, 3)
    diagonals = (0, 1, -2, 2**31 - 1, 2**31 - 2, 2**30, -(2**31) + 1, -(2**30) - 1)
    same(built(model), model, [{"x": x, "k": np.array(k)} for k in diagonals])


def test_more_of_the_largest_than_there_are(built: Build) -> None:
    model = build([make("TopK", ["x", "k"], ["y", "i"], axis=1, name="best")],
                  {"x": (FLOAT, ["N", 9]), "k": (INT64, [1])},
                  {"y": (FLOAT, ["N", "K"]), "i": (INT64, ["N", "K"])})  # fmt: skip
    done = built(model)
    x = np.random.default_rng(0).standard_normal((2, 9)).astype(F32)
    same(done, model, [{"x": x, "k": np.array([k])} for k in (2, 9, 1)])
    for k in (0, -1, 10, 2**31 - 1):
        with pytest.raises(ValuesRefused, match="TopK 'best' asks for less than one element, or for more"):
            done.answer({"x": x, "k": np.array([k])})


def reversal() -> onnx.ModelProto:
    node = make("ReverseSequence", ["x", "l"], ["y"], batch_axis=0, time_axis=1, name="back")
    return build([node], {"x": (FLOAT, ["N", 4]), "l": (INT64, ["N"])}, {"y": (FLOAT, ["N", 4])})


def test_lengths_beyond_the_steps_there_are(built: Build) -> None:
    model, x = reversal(), np.arange(8, dtype=F32).reshape(2, 4)
    done = built(model)
    assert done.manifest.proof.batchable
    same(done, model, [{"x": x, "l": np.array(lengths)} for lengths in ([1, 4], [0, 2])])
    for lengths in ([5, 1], [1, -1], [2**31 - 1, 1]):
        with pytest.raises(ValuesRefused, match="ReverseSequence 'back' has a length below 0 or beyond"):
            done.answer({"x": x, "l": np.array(lengths)})


def along(op: str) -> onnx.ModelProto:
    keeps = {} if op == "CumSum" else {"keepdims": 1}
    shape: list[int | str] = [] if op == "CumSum" else [1]
    node = make(op, ["x", "a"], ["y"], **keeps)
    return build([node], {"x": (FLOAT, ["N", 4]), "a": (INT64, shape)}, {"y": (FLOAT, ["P", "Q"])}, opset=18)


def test_axes_and_lengths_that_are_not_there_are_bad_requests(tmp_path: Path) -> None:
    ops = ["CumSum", "ReduceSum", "ReduceMax"]
    for op in ops:
        place(tmp_path, op, along(op))
    place(tmp_path, "back", reversal())
    x = np.arange(8, dtype=F32).reshape(2, 4)
    with running(tmp_path) as server:
        server.wait_ready(*ops, "back")
        for model, asks in {
            **{op: [(1, 200), (2, 400), (-7, 400), (0, 200)] for op in ops},
            "back": [([1, 2], 200), ([1, 9], 400), ([4, -1], 400), ([0, 4], 200)],
        }.items():
            name = "l" if model == "back" else "a"
            for value, status in asks * 2:
                sent = value if model in ("back", "CumSum") else [value]
                answer = server.infer(model, {"x": ("FP32", x), name: ("INT64", sent)})
                assert answer.status_code == status, (model, value, answer.text)
