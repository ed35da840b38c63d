"""Products with stored weights: the engine does not look at the inner dimension, and reads what is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from benchmarks.guard_networks import NETWORKS
from engines.errors import EngineFailed
from engines.reference import Reference
from engines.samples import Sampler, other_samplers
from engines.targets.openvino import read_model
from engines.tensor import DYNAMIC, TensorSpec
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build, place
from tests.support.servers import running

Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F32)


PRODUCTS: dict[str, tuple[list[NodeProto], dict[str, np.ndarray]]] = {
    "MatMul": ([make("Flatten", ["s"], ["f"]), make("MatMul", ["f", "g"], ["y"])], {"g": normal(16, 5)}),
    "Gemm": (
        [make("Flatten", ["s"], ["f"]), make("Gemm", ["f", "g", "b"], ["y"], transB=1)],
        {"g": normal(5, 16), "b": normal(5)},
    ),
    "Einsum": (
        [make("Flatten", ["s"], ["f"]), make("Einsum", ["f", "g"], ["y"], equation="nt, tk -> nk")],
        {"g": normal(16, 5)},
    ),
    "stored first": ([make("MatMul", ["g", "s"], ["y"])], {"g": normal(3, 4)}),
}


def first_four(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Takes any number of steps, and multiplies what there is of the first four with weights for four."""
    sliced = make("Slice", ["x", "zero", "four", "one"], ["s"])
    bounds = {"zero": np.array([0]), "four": np.array([4]), "one": np.array([1])}
    rank = 2 if nodes[0].op_type == "Flatten" else 3
    outputs = {"y": (FLOAT, ["N", *(f"d{i}" for i in range(1, rank))])}
    return build([sliced, *nodes], {"x": (FLOAT, ["N", "T", 4])}, outputs, {**bounds, **constants})


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_derived_inner_dimension_is_looked_at(kind: str, built: Build) -> None:
    model = first_four(*PRODUCTS[kind])
    done, reference = built(model), Reference(model)
    assert done.manifest.inputs[0].shape == (DYNAMIC, DYNAMIC, 4)
    asks = [{"x": normal(2, steps, 4)} for steps in (4, 9, 5, 3, 1)]
    answers = done.answer_all(asks)
    for ask, answer in zip(asks, answers, strict=True):
        if ask["x"].shape[1] < 4:
            assert isinstance(answer, EngineFailed), ask["x"].shape
        else:
            np.testing.assert_allclose(answer["y"], reference(ask)["y"], rtol=1e-4, atol=1e-5)


def test_a_dimension_of_which_the_reference_takes_one_size_has_that_size(built: Build) -> None:
    model = build([make("MatMul", ["x", "g"], ["y"])], {"x": (FLOAT, ["N", "S", "T"])}, {"y": (FLOAT, ["N", "S", 5])},
                  {"g": normal(16, 5)})  # fmt: skip
    manifest = built(model).manifest
    assert manifest.inputs[0].shape == (DYNAMIC, DYNAMIC, 16), "the steps stay variable"
    assert "dimension 2 of input 'x' is 16 alone: ONNX Runtime took no other size" in manifest.notes
    assert any(check.startswith("variable dimensions of") for check in manifest.proof.checks)


def test_one_dimension_may_be_resized_where_all_together_may_not() -> None:
    first = Sampler([TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC, DYNAMIC))], {"x": 0}, 16, 256)

    def sixteen_wide(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert row["x"].shape[2] == 16
        return {}

    found = other_samplers(first, sixteen_wide)
    assert [sampler.shape(first.inputs[0]) for sampler in found.samplers] == [(1, 32, 16)]
    assert found.pinned == {("x", 2): 16}
    longer = {"x": np.zeros((1, 16, 17), F32)}
    assert other_samplers(first, sixteen_wide, [longer]).pinned == {}, "the sender has rows of another width"


def test_what_would_take_too_long_is_not_taken_for_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Sampler([TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC))], {"x": 0}, 16, 256)
    monkeypatch.setattr("engines.samples._MAX_OTHER_S", -1.0)
    assert other_samplers(first, lambda row: {}) == ([], {})


@pytest.mark.parametrize("network", NETWORKS)
def test_products_of_known_size_are_left_as_they_are(network: str) -> None:
    graph = read_model(NETWORKS[network]()[0])
    assert not [op for op in graph.get_ops() if "/inner" in op.get_friendly_name()]


def test_pictures_of_another_size_are_bad_requests(tmp_path: Path) -> None:
    """A picture of 2 by 2 instead of 28 by 28 would read beyond what there is, and end the server."""
    nodes = [
        make("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]), make("Flatten", ["c"], ["f"]),
        make("MatMul", ["f", "g"], ["y"]),
    ]  # fmt: skip
    weights = {"w": normal(64, 1, 1, 1), "g": normal(64 * 32 * 32, 2)}
    place(tmp_path, "fixed", build(nodes, {"x": (FLOAT, ["N", 1, "H", "W"])}, {"y": (FLOAT, ["N", 2])}, weights))
    place(tmp_path, "derived", first_four(*PRODUCTS["MatMul"]))
    with running(tmp_path) as server:
        server.wait_ready("fixed", "derived")
        for size in (2, 33, 1, 31):
            answer = server.infer("fixed", {"x": ("FP32", np.zeros((1, 1, size, size)))})
            assert answer.status_code == 400, answer.text
            assert f"Expected [-1,1,32,32], got [1,1,{size},{size}]" in answer.json()["error"]
            assert server.infer("derived", {"x": ("FP32", np.zeros((1, 3, 4)))}).status_code == 400
        assert server.infer("fixed", {"x": ("FP32", np.zeros((1, 1, 32, 32)))}).json()["outputs"][0]["data"] == [0, 0]
        assert server.infer("derived", {"x": ("FP32", np.zeros((1, 6, 4)))}).json()["outputs"][0]["data"] == [0] * 5
