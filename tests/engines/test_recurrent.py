"""Recurrent models through the whole build: sequences that end early, and what export and import make of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ValuesRefused
from engines.reference import Arrays, Reference
from engines.verify import agreement_bound
from tests.engines.conftest import Built
from tests.passes.networks import recurrent
from tests.support.onnx_models import FLOAT, build

Build = Callable[[onnx.ModelProto | bytes], Built]
make = helper.make_node
F32 = np.float32
HIDDEN = 6


def packed_lstm() -> onnx.ModelProto:
    """As packed sequences are exported: x [N, T, 3] and lengths INT64 [N] through two layers of two directions.

    y [N, T, 12] are the states of the second, last [N, 2] is read off its last states, and cell [2, N, 6] is the last
    cell of each direction.
    """
    rng = np.random.default_rng(0)
    nodes = [make("Transpose", ["x"], ["s0"], perm=[1, 0, 2]), make("Cast", ["lengths"], ["l"], to=TensorProto.INT32)]
    stored = {"join": np.array([0, 0, -1], np.int64), "V": rng.standard_normal((2 * HIDDEN, 2), dtype=F32)}
    width = 3
    for i in range(2):
        stored[f"W{i}"] = rng.standard_normal((2, 4 * HIDDEN, width), dtype=F32) * F32(0.5)
        stored[f"R{i}"] = rng.standard_normal((2, 4 * HIDDEN, HIDDEN), dtype=F32) * F32(0.5)
        stored[f"B{i}"] = rng.standard_normal((2, 8 * HIDDEN), dtype=F32) * F32(0.1)
        reads, gives = [f"s{i}", f"W{i}", f"R{i}", f"B{i}", "l"], [f"y{i}", f"h{i}", "cell" if i else "c0"]
        nodes += [
            make("LSTM", reads, gives, hidden_size=HIDDEN, direction="bidirectional"),
            make("Transpose", [f"y{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),
            make("Reshape", [f"t{i}", "join"], [f"s{i + 1}"]),
        ]
        width = 2 * HIDDEN
    nodes += [
        make("Transpose", ["s2"], ["y"], perm=[1, 0, 2]),
        make("Transpose", ["h1"], ["ht"], perm=[1, 0, 2]),
        make("Flatten", ["ht"], ["hf"]),
        make("MatMul", ["hf", "V"], ["last"]),
    ]
    outputs = {"y": (FLOAT, ["N", "T", 2 * HIDDEN]), "last": (FLOAT, ["N", 2]), "cell": (FLOAT, [2, "N", HIDDEN])}
    inputs = {"x": (FLOAT, ["N", "T", 3]), "lengths": (TensorProto.INT64, ["N"])}
    return build(nodes, inputs, outputs, stored, 17)


def batches(model: onnx.ModelProto, batch_axis: int, count: int = 25) -> Iterator[Arrays]:
    rng = np.random.default_rng(1)
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for _ in range(count):
        steps, rows = (int(size) for size in rng.integers(1, [60, 9]))
        shape = (rows, steps, 3) if batch_axis == 0 else (steps, rows, 3)
        batch = {"x": rng.standard_normal(shape, dtype=F32)}
        if "lengths" in inputs:
            kind = helper.tensor_dtype_to_np_dtype(inputs["lengths"])
            batch["lengths"] = rng.integers(0, steps + 1, rows).astype(kind)
        yield batch


def answers_as_the_reference(done: Built, model: onnx.ModelProto, batch_axis: int) -> None:
    asked, reference, rounding = list(batches(model, batch_axis)), Reference(model), agreement_bound(model)
    for batch, answer in zip(asked, done.answer(*asked), strict=True):
        for name, want in reference(batch).items():
            np.testing.assert_allclose(answer[name], want, rtol=0, atol=rounding * max(1, np.abs(want).max()))


def test_packed_sequences_are_batched_and_right(built: Build) -> None:
    model = packed_lstm()
    done = built(model)
    assert done.manifest.proof.batchable, done.manifest.proof.reason
    assert done.axes == {"x": 0, "lengths": 0, "y": 0, "last": 0, "cell": 1}
    answers_as_the_reference(done, model, 0)
    (batch, *_) = batches(model, 0)
    for wrong in (batch["lengths"] + batch["x"].shape[1], batch["lengths"] - 1 - batch["x"].shape[1]):
        (refused,) = done.answer_all([{**batch, "lengths": wrong}])
        assert isinstance(refused, ValuesRefused)
        assert "a length below 0 or beyond the steps there are" in str(refused)


@pytest.mark.parametrize("op_type", ["GRU", "RNN"])
def test_sequences_along_the_first_axis(op_type: str, built: Build) -> None:
    model = recurrent(op_type, "reverse", with_lengths=True)
    done = built(model)
    assert done.axes == {"x": 1, "lengths": 0, "y": 1}
    answers_as_the_reference(done, model, 1)


@pytest.mark.parametrize("op_type", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_states_read_as_they_are(op_type: str, direction: str, built: Build) -> None:
    """OpenVINO 2026.4 exported a layer that read time as batch once it was imported."""
    model = recurrent(op_type, direction, 1)
    (layer, *_) = model.graph.node
    del model.graph.node[1:]
    layer.output[0] = "states"
    model.graph.node.append(make("Softmax", ["states"], ["y"], axis=-1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["T", 1, "N", 5]))
    done = built(model)
    assert done.axes == {"x": None, "y": None}
    answers_as_the_reference(done, model, 1)
