"""Recurrent models through the whole build: what export and import make of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.reference import Arrays, Reference
from engines.verify import rounding_bound
from tests.engines.conftest import Built
from tests.passes.networks import recurrent
from tests.support.onnx_models import FLOAT

Build = Callable[[onnx.ModelProto | bytes], Built]
make = helper.make_node
F32 = np.float32


def batches(batch_axis: int, count: int = 25) -> Iterator[Arrays]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        steps, rows = (int(size) for size in rng.integers(1, [60, 9]))
        shape = (rows, steps, 3) if batch_axis == 0 else (steps, rows, 3)
        batch = {"x": rng.standard_normal(shape, dtype=F32)}
        yield batch


def answers_as_the_reference(done: Built, model: onnx.ModelProto, batch_axis: int) -> None:
    asked, reference, rounding = list(batches(batch_axis)), Reference(model), 16 * rounding_bound(model)
    for batch, answer in zip(asked, done.answer(*asked), strict=True):
        for name, want in reference(batch).items():
            np.testing.assert_allclose(answer[name], want, rtol=0, atol=rounding * max(1, np.abs(want).max()))


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
