"""Whole numbers that nothing rounds must be equal; what an earlier try showed to be wrong stays wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import EngineError
from engines.frontend.kinds import exact_outputs
from engines.guarded import first_difference
from engines.reference import Arrays
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build

INT64, UINT8 = TensorProto.INT64, TensorProto.UINT8
Build = Callable[[onnx.ModelProto | bytes], Built]
make = helper.make_node


def test_which_outputs_nothing_is_rounded_in() -> None:
    nodes = [
        make("Add", ["i", "i"], ["exact"]), make("Cast", ["x"], ["cut"], to=INT64),
        make("Add", ["cut", "i"], ["rounded"]),
        make("Shape", ["x"], ["sizes"]), make("ArgMax", ["x"], ["best"], axis=1), make("Relu", ["x"], ["y"]),
    ]  # fmt: skip
    inputs = {"i": (INT64, ["N", 2]), "x": (FLOAT, ["N", 2])}
    outputs = {"exact": (INT64, ["N", 2]), "rounded": (INT64, ["N", 2]), "sizes": (INT64, [2]),
               "best": (INT64, ["N", 1]), "y": (FLOAT, ["N", 2])}  # fmt: skip
    assert exact_outputs(build(nodes, inputs, outputs)) == {"exact", "sizes"}


def test_one_wrong_whole_number_in_a_thousand_is_a_difference() -> None:
    want = np.zeros(1000, np.int64)
    got = np.eye(1, 1000, 7, dtype=np.int64)[0]
    runs = (lambda row: {"y": got}), (lambda row: {"y": want})
    row: Arrays = {}
    assert first_difference(*runs, [row], 1e-4) == "", "behind an argmax, one may flip on a tie"
    assert "is off by 1, bound 0" in first_difference(*runs, [row], 1e-4, {"y"})


@pytest.mark.parametrize("padded", [False, True])
def test_bytes_that_wrap_are_not_published_wrong(padded: bool, built: Build) -> None:
    """OpenVINO 2026.4 saturates where a byte minus 1 wraps; a Pad of a fixed size beside it changes nothing."""
    nodes = [make("Sub", ["x", "one"], ["z" if padded else "y"])]
    constants: dict[str, np.ndarray] = {"one": np.array(1, np.uint8)}
    if padded:
        nodes.append(make("Pad", ["z", "pads"], ["y"]))
        constants["pads"] = np.array([0, 0, 0, 1])
    model = build(nodes, {"x": (UINT8, ["N", 32])}, {"y": (UINT8, ["N", "M"])}, constants)
    x = np.arange(64, dtype=np.uint8).reshape(2, 32)
    done = built(model)
    want = (x - np.uint8(1)) if not padded else np.pad(x - np.uint8(1), ((0, 0), (0, 1)))
    np.testing.assert_array_equal(done.answer({"x": x})[0]["y"], want)


def test_a_guard_is_not_deaf_to_what_is_defined(built: Build) -> None:
    """Samples never take the branch; a request that does must not be answered wrongly."""
    nodes = [
        make("Mul", ["a", "two31"], ["b"]), make("Cast", ["b"], ["c"], to=INT64, name="cut"),
        make("Cast", ["c"], ["d"], to=FLOAT), make("Greater", ["x", "hundred"], ["far"]),
        make("Where", ["far", "d", "x"], ["y"]),
    ]  # fmt: skip
    constants = {"two31": np.float32(2.0**31), "hundred": np.float32(100)}
    model = build(nodes, {"x": (FLOAT, ["N", 1]), "a": (FLOAT, ["N", 1])}, {"y": (FLOAT, ["N", 1])}, constants)
    one = np.ones((1, 1), np.float32)
    with pytest.raises(EngineError, match="Cast 'cut' makes an integer of a number beyond 32 bits"):
        built(model).answer({"x": 200 * one, "a": 2 * one})
