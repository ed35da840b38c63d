"""Rows that touch only where some row holds a zero (a padding mask over the whole batch) are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.repository import PlanCache
from tests.support.onnx_models import build, place
from tests.support.plans import compile_into


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_a_mask_over_the_batch_is_found(tmp_path: Path, kind: int) -> None:
    nodes = [
        helper.make_node("Equal", ["x", "zero"], ["is_zero"]),
        helper.make_node("Cast", ["is_zero"], ["flags"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["flags"], ["any"], axes=[0], keepdims=1),
        helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["xf", "any"], ["y"]),
    ]
    zero = np.zeros((), {TensorProto.FLOAT: np.float32, TensorProto.INT64: np.int64}[kind])
    model = build(nodes, {"x": (kind, ["N", 4])}, {"y": (TensorProto.FLOAT, ["N", 4])}, {"zero": zero})
    proof = compile_into(PlanCache(tmp_path / "cache"), place(tmp_path, "masked", model)).proof
    assert not proof.batchable
    assert "touch" in proof.reason


def test_a_maximum_over_the_batch_that_others_hide_is_found(tmp_path: Path) -> None:
    """It is seen only where a row is low in every element, and alone."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[0, 1], keepdims=1),
        helper.make_node("Less", ["most", "low"], ["is_low"]),
        helper.make_node("Cast", ["is_low"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    inputs, outputs = {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": (TensorProto.FLOAT, ["N", 4])}
    model = build(nodes, inputs, outputs, {"low": np.float32(-50)})
    proof = compile_into(PlanCache(tmp_path / "cache"), place(tmp_path, "hidden", model)).proof
    assert not proof.batchable
    assert "extreme row" in proof.reason
