"""Models are batched where their rows were found independent, and nowhere else. Needs OpenVINO and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.reference import Reference
from engines.samples import Sampler
from engines.tensor import DYNAMIC
from tests.engines import zoo
from tests.engines.conftest import Built

Build = Callable[[onnx.ModelProto | bytes], Built]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
TOLERANCE = 2e-4
"""Relative to the largest answer; the build itself holds the engine to a bound derived from the graph."""


def answers_in_batches_as_the_reference_alone(built: Built, model: onnx.ModelProto, rows: int = 5) -> None:
    inputs = built.manifest.inputs
    axes = {spec.name: spec.batch_axis or 0 for spec in inputs}
    sampler = Sampler(inputs, axes, size=built_size(built), int_limit=2)
    drawn = [sampler.draw(seed=100 + seed) for seed in range(rows)]
    batch = {name: np.concatenate([row[name] for row in drawn], axis=axis) for name, axis in axes.items()}
    (answer,) = built.answer(batch)
    reference = Reference(model)
    for i, row in enumerate(drawn):
        for name, want in reference(row).items():
            got = np.take(answer[name], [i], axis=built.axes[name])
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * max(1e-30, float(np.abs(want).max())))


def built_size(built: Built) -> int:
    """What stands for variable dimensions in the shapes that the build found to work."""
    for spec in built.manifest.inputs:
        for axis, dim in enumerate(spec.shape):
            if dim == DYNAMIC and axis != spec.batch_axis:
                return built.manifest.sample_shapes[spec.name][axis]
    return 1


@pytest.mark.parametrize("name", zoo.BATCHED)
def test_independent_rows_are_batched_along_their_axes(name: str, built: Build) -> None:
    make, axes = zoo.BATCHED[name]
    model = make()
    done = built(model)
    proof = done.manifest.proof
    assert proof.batchable, proof.reason
    assert done.axes == axes
    assert all(spec.shape[spec.batch_axis or 0] == DYNAMIC for spec in done.manifest.inputs)
    assert {"together", "permuted", "in a full batch"} <= set(proof.checks)
    answers_in_batches_as_the_reference_alone(done, model)


@pytest.mark.parametrize("name", zoo.FIXED_ONE)
def test_a_batch_of_one_is_made_variable(name: str, built: Build) -> None:
    make, axes = zoo.FIXED_ONE[name]
    model = make()
    done = built(model)
    assert done.manifest.proof.batchable, done.manifest.proof.reason
    assert done.axes == axes
    answers_in_batches_as_the_reference_alone(done, model)


@pytest.mark.parametrize("name", zoo.NOT_BATCHED)
def test_rows_that_touch_run_one_request_at_a_time(name: str, built: Build) -> None:
    make, reason = zoo.NOT_BATCHED[name]
    model = make()
    done = built(model)
    proof = done.manifest.proof
    assert not proof.batchable
    assert proof.reason
    assert reason in proof.reason
    assert set(done.axes.values()) == {None}
    for spec, value in zip(done.manifest.inputs, model.graph.input, strict=True):
        declared = [d.dim_value or DYNAMIC for d in value.type.tensor_type.shape.dim]
        assert list(spec.shape) == declared, "shapes stay as they are"


def test_an_unbatched_model_still_answers_as_the_reference(built: Build) -> None:
    model = zoo.NOT_BATCHED["softmax over the batch"][0]()
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    (answer,) = built(model).answer({"x": x})
    np.testing.assert_allclose(answer["y"], Reference(model)({"x": x})["y"], rtol=1e-5)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_models_of_the_onnx_package_are_batched(name: str, built: Build) -> None:
    """Their weights are all 0.02, so that they answer all inputs alike: the proof needs a twin to see anything."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    done = built(model)
    assert done.manifest.proof.batchable, done.manifest.proof.reason
    assert set(done.axes.values()) == {0}
    assert any("twin with random weights" in note for note in done.manifest.notes)
    if name != "squeezenet":  # whose answers are decided by rounding
        answers_in_batches_as_the_reference_alone(done, model, rows=2)
