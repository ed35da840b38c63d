"""How far the proof reaches: further sizes of the variable dimensions, batches beyond a full one, answers kept."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from engines import batchproof, samples
from engines.agreement import WrongEngine, agree_at, prove_at
from engines.batchproof import Proven, Refuted, prove
from engines.guarded import Guards
from engines.reference import Arrays, Reference
from engines.samples import Sampler, other_samplers
from engines.targets import openvino as target
from engines.tensor import DYNAMIC, TensorSpec
from tests.engines import zoo
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build, linear

SEQUENCE = [TensorSpec("x", "FP32", (DYNAMIC, DYNAMIC, 4))]
AXES = {"x": 0}
FIRST = Sampler(SEQUENCE, AXES, 32, 256)
Function = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out for the time that it would take depends on the machine's load."""
    monkeypatch.setattr(batchproof, "_CHEAP_S", np.inf)
    monkeypatch.setattr(samples, "_MAX_OTHER_S", np.inf)


def running(function: Function) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {"y": function(arrays["x"])}


def judge(function: Function) -> Proven | Refuted:
    run = running(function)
    proven = prove(run, FIRST.rows(), AXES, 1e-5)
    assert isinstance(proven, Proven)
    return prove_at(other_samplers(FIRST, run).samplers, run, AXES, 1e-5, proven)


def sizes(samplers: list[Sampler]) -> list[int]:
    return [sampler.size for sampler in samplers]


def test_a_larger_and_a_smaller_size_are_found() -> None:
    def at_most_fifty(row: Arrays) -> Arrays:
        assert row["x"].shape[1] <= 50
        return {}

    def thirty_two_alone(row: Arrays) -> Arrays:
        assert row["x"].shape[1] == 32
        return {}

    assert sizes(other_samplers(FIRST, lambda row: {}).samplers) == [75, 13]
    assert sizes(other_samplers(FIRST, at_most_fifty).samplers) == [48, 13]
    assert sizes(other_samplers(FIRST, thirty_two_alone).samplers) == []
    assert sizes(other_samplers(FIRST.resized(224), lambda row: {}).samplers) == [256, 13]
    assert sizes(other_samplers(FIRST.resized(1), lambda row: {}).samplers) == [75]


def test_fixed_shapes_have_one_size() -> None:
    fixed = Sampler([TensorSpec("x", "FP32", (DYNAMIC, 8))], AXES, 32, 256)
    assert not fixed.is_variable
    assert other_samplers(fixed, lambda row: {}) == ([], {})


def test_sizes_that_cost_much_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Sampler([TensorSpec("x", "FP32", (DYNAMIC, 64, DYNAMIC, DYNAMIC, DYNAMIC))], AXES, 32, 256)
    assert sizes(other_samplers(volume, lambda row: {}).samplers) == [33, 13]
    monkeypatch.setattr(samples, "_MAX_OTHER_S", -1.0)
    assert other_samplers(FIRST, lambda row: {}) == ([], {})


HONEST: dict[str, Function] = {"tanh": lambda x: np.tanh(x) * 3, "reduced": lambda x: x.sum(axis=1)}
FOOLS: dict[str, Function] = {
    "mixes at length 75": lambda x: x + x.mean(axis=0) if x.shape[1] == 75 else x,
    "mixes next to nothing in long rows": lambda x: x + np.float32(1e-38) * x.sum() if x.shape[1] > 32 else x,
    "swaps short rows": lambda x: x[::-1] if x.shape[1] < 20 else x,
    "turns long rows": lambda x: x.swapaxes(0, 1) if x.shape[1] > 40 else x,
    "drops rows of long sequences": lambda x: x[:2] if x.shape[1] > 40 else x,
    "cannot run two long rows": lambda x: x if x.shape[1] < 40 or len(x) == 1 else 1 // 0,
}  # fmt: skip


@pytest.mark.parametrize("name", FOOLS)
def test_another_size_refutes(name: str) -> None:
    found = judge(FOOLS[name])
    assert isinstance(found, Refuted)
    assert found.reason.startswith("variable dimensions of ")


@pytest.mark.parametrize("name", HONEST)
def test_honest_rows_are_proven_at_every_size_that_is_named(name: str) -> None:
    found = judge(HONEST[name])
    assert isinstance(found, Proven)
    said = [check for check in found.proof.checks if check.startswith("variable dimensions of")]
    assert [check.partition(":")[0] for check in said] == ["variable dimensions of 75", "variable dimensions of 13"]
    assert all("together" in check and "beside a row of NaN" in check for check in said)


def test_a_size_that_shows_nothing_is_said_to() -> None:
    found = judge(lambda x: x * (x.shape[1] > 20))
    assert isinstance(found, Proven)
    assert "variable dimensions of 13: output 'y' is the same for every sample" in found.proof.checks[-1]


def test_an_engine_that_errs_at_another_size_is_wrong() -> None:
    model = zoo.short_sequences()
    reference = Reference(model)
    others = other_samplers(FIRST, reference).samplers

    def wrong_in_long_rows(arrays: Arrays) -> Arrays:
        return {"y": reference(arrays)["y"] * np.float32(1 + (arrays["x"].shape[1] > 40))}

    agree_at(others, reference, reference, model, Reference, Guards((), 1e-4))
    with pytest.raises(WrongEngine, match=r"^variable dimensions of 48: OpenVINO answers differently"):
        agree_at(others, wrong_in_long_rows, reference, model, Reference, Guards((), 1e-4))


def test_a_plan_names_the_sizes_it_was_proven_at(built: Callable[[onnx.ModelProto], Built]) -> None:
    checks = built(zoo.short_sequences()).manifest.proof.checks
    assert [check.partition(": ")[0] for check in checks[-2:]] == [f"variable dimensions of {n}" for n in (48, 13)]
    assert "in a batch of 256" in checks


def test_where_no_other_size_runs_the_plan_says_so(built: Callable[[onnx.ModelProto], Built]) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)}
    model = build(nodes, {"x": (FLOAT, ["N", "T", 4])}, {"y": (FLOAT, ["N", 2])}, weights)
    manifest = built(model).manifest
    assert manifest.proof.batchable
    assert "dimension 1 of input 'x' is 16 alone: ONNX Runtime took no other size" in manifest.notes
    assert manifest.inputs[0].shape == (DYNAMIC, 16, 4)


ROWS = FIRST.rows()
LARGE: dict[str, Function] = {
    "swaps from 33 rows on": lambda x: x[::-1] if len(x) > 32 else x,
    "is other at 64 rows": lambda x: x * (1 + (len(x) == 64)),
    "drops rows beyond 100": lambda x: x[:100],
    "cannot run 256 rows": lambda x: x if len(x) < 256 else 1 // 0,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_batches_beyond_a_full_one_are_looked_at(name: str) -> None:
    assert isinstance(prove(running(LARGE[name]), ROWS, AXES, 1e-5), Refuted)


def test_a_model_that_answers_otherwise_in_large_batches(built: Callable[[onnx.ModelProto], Built]) -> None:
    proof = built(zoo.large_batches_doubled(200)).manifest.proof
    assert not proof.batchable
    assert "rows touch each other (in a batch of 256)" in proof.reason


@pytest.mark.parametrize(("limit", "value"), [("_CHEAP_S", 0.0), ("_CHEAP_BYTES", 1000)])
def test_large_batches_that_cost_much_are_not_run_and_that_is_said(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchproof, limit, value)
    seen: list[int] = []
    found = prove(lambda a: {"y": a["x"] * (1 + 0 * (seen.append(len(a["x"])) or 0))}, ROWS, AXES, 1e-5)
    assert isinstance(found, Proven)
    assert max(seen) == 32
    assert found.proof.checks[-1] == "not run beyond 32 rows: 33 would take over 1 s or 256 MiB"


def test_the_reference_runs_the_same_inputs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    original = Reference._run
    monkeypatch.setattr(Reference, "_run", lambda self, inputs: runs.append(1) or original(self, inputs))
    reference = Reference(linear())
    x = np.ones((1, 16), np.float32)
    first = reference({"x": x})
    again = reference({"x": x.copy()})
    np.testing.assert_array_equal(first["y"], again["y"])
    assert len(runs) == 1
    x *= 2
    np.testing.assert_array_equal(reference({"x": x})["y"], 2 * first["y"])
    assert len(runs) == 2, "what was asked is told by its values, not by its array"
    with pytest.raises(ValueError, match="read-only"):
        again["y"][:] = 0
    again.clear()
    assert reference({"x": x / 2})["y"].shape == (1, 4), "a caller's dictionary is its own"
    for _ in range(2):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            reference({"x": np.ones((1, 15), np.float32)})
    assert len(runs) == 4, "refusals are not kept"
    monkeypatch.setattr(reference._remembered, "_room", 0)
    for _ in range(2):
        reference({"x": x * 3})
    assert len(runs) == 6, "no room, nothing kept"


def test_inputs_of_the_same_bytes_are_told_apart() -> None:
    shape = build([helper.make_node("Shape", ["x"], ["y"])], {"x": (FLOAT, ["A", "B"])}, {"y": (zoo.INT64, [2])})
    reference = Reference(shape)
    assert [reference({"x": np.zeros(s, np.float32)})["y"].tolist() for s in ((2, 3), (3, 2))] == [[2, 3], [3, 2]]
    inverse = build([helper.make_node("Reciprocal", ["x"], ["y"])], {"x": (FLOAT, ["N"])}, {"y": (FLOAT, ["N"])})
    reference = Reference(inverse)
    assert [reference({"x": np.array([z], np.float32)})["y"][0] for z in (0.0, -0.0)] == [np.inf, -np.inf]
    two = Reference(zoo.elementwise(FLOAT, "Sub"))
    a, b = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert [two(pair)["y"][0, 0] for pair in ({"a": a, "b": b}, {"a": b, "b": a}, {"b": b, "a": a})] == [-1, 1, -1]


def test_the_engine_that_won_the_timing_is_the_one_exported_and_kept_no_longer() -> None:
    graph, other = target.read_model(linear()), target.read_model(linear())
    best, *rest = target.time_streams(graph, {"x": np.ones((8, 16), np.float32)}, 8, 2)
    engine = target.compile_model(graph, best.streams, best.threads)
    assert len(target._fastest) == 0, "it is handed out once, and not kept for anybody else"
    assert engine.get_property("NUM_STREAMS") == best.streams
    (second,) = rest
    assert target.compile_model(graph, second.streams, second.threads).get_property("NUM_STREAMS") == second.streams
    target.time_streams(other, {"x": np.ones((8, 16), np.float32)}, 8, 2)
    assert len(target._fastest) == 1
    del other
    gc.collect()
    assert len(target._fastest) == 0


@pytest.mark.parametrize(
    ("first", "second", "clear"),
    [([10, 12], [10, 12], True), ([10, 12], [11, 13], True), ([10, 12], [11, 12], False), ([9, 12], [12, 9], False)],
)
def test_timing_ends_where_all_rounds_say_the_same(first: list[float], second: list[float], clear: bool) -> None:
    assert target._is_clear(first, second) is clear
    assert target._is_clear(first)


def test_sizes_that_differ_from_each_other_are_tried_too() -> None:
    image = Sampler([TensorSpec("x", "FP32", (DYNAMIC, 3, DYNAMIC, DYNAMIC))], AXES, 32, 256)
    shapes = [sampler.shape(sampler.inputs[0]) for sampler in other_samplers(image, lambda row: {}).samplers]
    assert shapes == [(1, 3, 75, 75), (1, 3, 13, 13), (1, 3, 38, 41)]

    def multiples_alone(row: Arrays) -> Arrays:
        assert row["x"].shape[2] % 32 == row["x"].shape[3] % 32 == 0
        return {}

    shapes = [sampler.shape(sampler.inputs[0]) for sampler in other_samplers(image, multiples_alone).samplers]
    assert shapes == [(1, 3, 64, 64), (1, 3, 96, 128)]
