"""An engine that raises on a sample refuses that one, as its guards do: the model is built of the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.warmup import warm_up
from engines.errors import EngineError, EngineFailed
from engines.reference import Arrays, Reference
from engines.runtime.openvino import load_session
from engines.targets.openvino import compile_model, read_model, runner
from tests.engines.conftest import Built
from tests.engines.test_recovery import ask_widths, sums
from tests.support.onnx_models import FLOAT, build

INT64 = TensorProto.INT64
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node


def best(least: int) -> onnx.ModelProto:
    """The engine raises where k + `least` is 0; ONNX Runtime answers nothing."""
    nodes = [make("Add", ["k", "least"], ["some"]), make("TopK", ["x", "some"], ["y", "i"], axis=1)]
    return build(nodes, {"x": (FLOAT, ["N", 9]), "k": (INT64, [1])}, {"y": (FLOAT, ["N", "K"])},
                 {"least": np.array([least])})  # fmt: skip


@pytest.fixture
def _no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this operator, so that it raises."""
    monkeypatch.setattr("engines.passes.guards.COUNTED", {})


@pytest.mark.usefixtures("_no_guard")
def test_a_model_is_built_of_the_samples_that_its_engine_runs(built: Build) -> None:
    model = best(0)
    done, reference = built(model), Reference(model)
    x = np.random.default_rng(0).standard_normal((2, 9)).astype(F32)
    asks: list[Arrays] = [{"x": x, "k": np.array([k])} for k in (3, 0, 3, 9, 10, 9)]
    for ask, answer in zip(asks, done.answer_all(asks), strict=True):
        if ask["k"][0] in (0, 10):
            assert isinstance(answer, EngineFailed)
        else:
            np.testing.assert_array_equal(answer["y"], reference(ask)["y"])
    session = load_session(done.cache.entry(done.manifest.key), done.manifest)
    try:
        warm_up(
            session, done.manifest, (1, 2) if done.manifest.proof.batchable else (1,)
        )  # with zeros, on which it raises
    finally:
        session.close()


@pytest.mark.usefixtures("_no_guard")
def test_a_model_whose_engine_runs_no_sample_is_refused_with_the_reason(built: Build) -> None:
    nodes = [make("Mul", ["k", "nothing"], ["some"]), make("TopK", ["x", "some"], ["y", "i"], axis=1)]
    model = build(nodes, {"x": (FLOAT, ["N", 9]), "k": (INT64, [1])}, {"y": (FLOAT, ["N", "K"])},
                  {"nothing": np.array([0])})  # fmt: skip
    with pytest.raises(EngineError, match=r"the engine refuses every sample: .*must be greater or equal to 1"):
        built(model)


def test_a_run_that_raises_spoils_nothing_for_the_proof() -> None:
    model = sums()
    run, reference = runner(compile_model(read_model(model), 1, 2), ["y"]), Reference(model)
    rng = np.random.default_rng(0)
    for _ in range(10):
        good = ask_widths(rng, False)
        for _ in range(2):
            np.testing.assert_allclose(run(good)["y"], reference(good)["y"], rtol=1e-4, atol=1e-5)
            with pytest.raises(EngineFailed):
                run(ask_widths(rng, True))
