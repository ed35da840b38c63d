"""Half precision: what the engine computes in FP32 is held against exactly that; no bound leaves room for halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.agreement import WrongEngine
from engines.errors import EngineError
from engines.passes.widen import has_halves, widen_halves
from engines.reference import Arrays, Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node


def classifier(kind: int) -> onnx.ModelProto:
    """Everything in one precision: a layer, a normalization, a softmax."""
    rng = np.random.default_rng(0)
    half = np.float16
    weights = {"w": rng.standard_normal((16, 32)).astype(half), "v": rng.standard_normal((32, 4)).astype(half)}
    nodes = [
        make("MatMul", ["x", "w"], ["h"]), make("Relu", ["h"], ["r"]), make("MatMul", ["r", "v"], ["z"]),
        make("Softmax", ["z"], ["y"], axis=1),
    ]  # fmt: skip
    return build(nodes, {"x": (kind, ["N", 16])}, {"y": (kind, ["N", 4])}, weights)


def mixed() -> onnx.ModelProto:
    """FP32 with one weight stored as a half, as exporters write them to save space."""
    weights = {"w": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float16)}
    nodes = [make("Cast", ["w"], ["wide"], to=FLOAT), make("MatMul", ["x", "wide"], ["y"])]
    return build(nodes, {"x": (FLOAT, ["N", 16])}, {"y": (FLOAT, ["N", 4])}, weights)


def test_a_half_model_serves_in_its_own_types(built: Build) -> None:
    model = classifier(HALF)
    done = built(model)
    assert [spec.datatype for spec in (*done.manifest.inputs, *done.manifest.outputs)] == ["FP16", "FP16"]
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float16)
    answer = done.answer({"x": x})[0]["y"]
    wide, note = widen_halves(model)
    assert "its rounding is left out" in note
    np.testing.assert_allclose(answer, Reference(wide)({"x": x})["y"], rtol=2**-10)
    np.testing.assert_allclose(answer.astype(F32), Reference(model)({"x": x})["y"].astype(F32), atol=0.02)


def test_one_stored_half_widens_no_bound(built: Build) -> None:
    done = built(mixed())
    assert done.manifest.proof.bound < 0.1, "absolute; rows of 100 give answers of some hundreds"
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(F32)
    np.testing.assert_allclose(done.answer({"x": x})[0]["y"], Reference(mixed())({"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_wrong_engine_is_found_beside_a_stored_half(built: Build) -> None:
    """Regions are pooled otherwise by OpenVINO 2026.4; a half elsewhere must not hide it."""
    nodes = [
        make("RoiAlign", ["x", "rois", "which"], ["p"], output_height=2, output_width=2, name="culprit"),
        make("Cast", ["half"], ["wide"], to=FLOAT), make("Mul", ["p", "wide"], ["y"]),
    ]  # fmt: skip
    constants = {"rois": np.array([[0, 0, 3, 3]], F32), "which": np.array([0]), "half": np.float16([1.5])}
    model = build(nodes, {"x": (FLOAT, [1, 1, 4, 4])}, {"y": (FLOAT, [1, 1, 2, 2])}, constants)
    with pytest.raises(WrongEngine, match="RoiAlign 'culprit'"):
        built(model)


def test_bodies_and_casts_are_widened_too(tmp_path: Path) -> None:
    then = helper.make_graph(
        [make("Mul", ["h", "h"], ["a"])], "then", [], [helper.make_tensor_value_info("a", HALF, [2])]
    )
    other = helper.make_graph([make("Neg", ["h"], ["b"])], "else", [], [helper.make_tensor_value_info("b", HALF, [2])])
    nodes = [
        make("Cast", ["x"], ["h"], to=HALF), make("If", ["flag"], ["z"], then_branch=then, else_branch=other),
        make("Cast", ["z"], ["y"], to=FLOAT),
    ]  # fmt: skip
    model = build(nodes, {"x": (FLOAT, [2]), "flag": (TensorProto.BOOL, [])}, {"y": (FLOAT, [2])})
    wide, _ = widen_halves(model)
    assert has_halves(model)
    assert not has_halves(wide)
    for flag in (True, False):
        ask: Arrays = {"x": np.array([1.5, 3e5], F32), "flag": np.array(flag)}
        want = ask["x"] ** 2 if flag else -ask["x"]
        np.testing.assert_array_equal(Reference(wide)(ask)["y"], want)


def test_nothing_half_is_left_as_it_is() -> None:
    model = build([make("Relu", ["x"], ["y"])], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])})
    assert widen_halves(model) == (model, "")


def rounded_on_purpose(kind: int) -> onnx.ModelProto:
    """Whole numbers that a half rounds; or what rounding to a half takes away."""
    if kind == TensorProto.INT32:
        nodes = [make("Cast", ["x"], ["h"], to=HALF), make("Cast", ["h"], ["y"], to=kind)]
    else:
        nodes = [
            make("Cast", ["x"], ["h"], to=HALF), make("Cast", ["h"], ["r"], to=FLOAT), make("Sub", ["x", "r"], ["y"]),
        ]  # fmt: skip
    return build(nodes, {"x": (kind, ["N", 4])}, {"y": (kind, ["N", 4])})


def test_rounding_that_is_meant_is_not_left_out_without_a_word(built: Build) -> None:
    with pytest.raises(EngineError, match="depends on the rounding of half precision"):
        built(rounded_on_purpose(FLOAT))


def test_whole_numbers_that_a_half_rounds_are_not_answered_otherwise(built: Build) -> None:
    with pytest.raises(EngineError, match=r"off by .* for whole numbers below"):
        built(rounded_on_purpose(TensorProto.INT32))
