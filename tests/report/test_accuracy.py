"""Engine beside reference, over samples of a file or drawn: batches of any size say the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from engines.accuracy import assess, default_metric, shortfall
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.npz import DrawnSamples, FileSamples, read_samples
from engines.passes.dynamic_batch import with_batch_axes
from engines.reference import Arrays, Reference
from engines.report import Accuracy
from engines.samples import find_sampler, integer_limits
from engines.targets import openvino as target
from engines.tensor import TensorSpec
from tests.support.onnx_models import FLOAT, build, linear

TOLERANCE = 1e-5
Run = Callable[[Arrays], Arrays]


def engine_of(model: onnx.ModelProto, axes: dict[str, int]) -> Run:
    graph = target.read_model(with_batch_axes(model, axes))
    names = [output.name for output in model.graph.output]
    return target.runner(target.compile_model(graph, 1, 1), names)


def file_of(folder: Path, model: onnx.ModelProto, **arrays: np.ndarray) -> FileSamples:
    np.savez(folder / "samples.npz", **arrays)
    return read_samples(folder / "samples.npz", tensor_specs(model)[0], with_truth=len(arrays) > len(model.graph.input))


def digits(count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((count, 16), np.float32), rng.integers(0, 4, count)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_engine_runs_batches_and_the_reference_each_sample(tmp_path: Path, batch: int | str, rows: int) -> None:
    model, (x, labels) = linear(batch=batch), digits()
    sizes: list[int] = []
    engine = engine_of(model, {"x": 0})

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        return engine(inputs)

    found = assess(
        run, Reference(model), file_of(tmp_path, model, x=x, labels=labels), None, tolerance=TOLERANCE,
        axes={"x": 0}, output_axes={"y": 0}, rows=rows,
    )  # fmt: skip
    want = Reference(linear())({"x": x})["y"]
    assert (found.metric, found.against, found.output) == ("top1", "labels", "y")
    assert found.value == found.reference_value == (want.argmax(axis=1) == labels).mean()
    assert (found.samples, found.synthetic, found.over_bound, found.decisions_changed) == (50, False, 0, 0)
    assert sizes[0] == 1
    assert max(sizes) == min(rows, 49)
    assert sum(sizes) == 50


def test_without_axes_a_sample_is_a_request(tmp_path: Path) -> None:
    model = linear(batch=3)
    x = np.random.default_rng(0).random((5, 3, 16), np.float32)
    targets = Reference(model)({"x": x[0]})["y"][None].repeat(5, axis=0)
    samples = file_of(tmp_path, model, x=x, targets=targets)
    found = assess(engine_of(model, {}), Reference(model), samples, None, tolerance=TOLERANCE)
    assert (found.metric, found.against, found.samples) == ("rmse", "targets", 5)
    assert found.value == pytest.approx(found.reference_value)
    assert found.value > 0.01


def test_drawn_samples_are_judged_by_the_reference_and_say_what_they_are() -> None:
    model = linear()
    inputs, _ = tensor_specs(model)
    reference = Reference(model)
    samples = DrawnSamples(find_sampler(inputs, {"x": 0}, reference, integer_limits(False)), 900)
    found = assess(
        engine_of(model, {"x": 0}), reference, samples, None, tolerance=TOLERANCE, axes={"x": 0}, output_axes={"y": 0}
    )
    assert (found.synthetic, found.metric, found.against, found.reference_value) == (True, "cosine", "reference", 1.0)
    assert found.value == pytest.approx(1.0, abs=1e-9)
    assert (len(found.shares), found.samples_per_share) == (300, 3)


def spoilt(model: onnx.ModelProto, change: Callable[[np.ndarray], None]) -> Run:
    """The reference itself, its answers to the fourth sample changed."""
    reference, seen = Reference(model), [0]

    def run(inputs: Arrays) -> Arrays:
        answer = reference(inputs)["y"].copy()
        for row in answer:
            if seen[0] == 3:
                change(row)
            seen[0] += 1
        return {"y": answer}

    return run


def judged(folder: Path, change: Callable[[np.ndarray], None]) -> Accuracy:
    model, (x, labels) = linear(), digits(10)
    samples = file_of(folder, model, x=x, labels=labels)
    axes = {"axes": {"x": 0}, "output_axes": {"y": 0}}
    return assess(spoilt(model, change), Reference(model), samples, None, tolerance=TOLERANCE, **axes)


def add(row: np.ndarray) -> None:
    row[0] += 1


def test_the_worst_sample_is_found_with_its_difference(tmp_path: Path) -> None:
    found = judged(tmp_path, add)
    assert found.over_bound == 1
    assert [(worst.index, worst.output, worst.difference) for worst in found.worst] == [(3, "y", pytest.approx(1.0))]
    assert found.worst[0].bound < 1e-3
    assert [share > 1 for share in found.shares if share is not None] == [i == 3 for i in range(10)]


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_what_is_not_finite_on_one_side_is_the_worst_there_is(tmp_path: Path, strange: float) -> None:
    found = judged(tmp_path, lambda row: row.fill(strange))
    assert (found.over_bound, found.worst[0].index, found.worst[0].difference) == (1, 3, None)
    assert found.shares[3] is None
    assert found.decisions_changed == (1 if np.isnan(strange) else found.decisions_changed)


def test_an_answer_of_another_shape_is_no_answer() -> None:
    model = linear()
    reference = Reference(model)
    samples = DrawnSamples(find_sampler(tensor_specs(model)[0], {"x": 0}, reference, integer_limits(False)), 3)
    with pytest.raises(ModelRefused, match=r"output 'y' has shape \[1, 3\]; the reference \[1, 4\]"):
        assess(lambda inputs: {"y": reference(inputs)["y"][:, :3]}, reference, samples, None, tolerance=TOLERANCE)


def two_outputs() -> onnx.ModelProto:
    """An embedding [N, 2, 3], scores [N, 4] and the class that they say [N]."""
    from onnx import helper

    nodes = [
        helper.make_node("Reshape", ["x", "to"], ["embedding"]),
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=0),
    ]
    values = {"to": np.array([-1, 2, 3]), "w": np.random.default_rng(0).random((6, 4), np.float32)}
    outputs = {"class": (onnx.TensorProto.INT64, ["N"]), "embedding": (FLOAT, ["N", 2, 3]), "scores": (FLOAT, ["N", 4])}
    return build(nodes, {"x": (FLOAT, ["N", 6])}, outputs, values)


@pytest.mark.parametrize(
    ("truth", "output"),
    [
        ({"labels": np.array([1, 2, 3])}, "scores"),
        ({"targets": np.ones((3, 2, 3))}, "embedding"),
        ({"targets": np.ones((3, 4))}, "scores"),
    ],
)
def test_the_metric_is_taken_of_the_output_that_the_truth_is_about(
    tmp_path: Path, truth: dict[str, np.ndarray], output: str
) -> None:
    model = two_outputs()
    samples = file_of(tmp_path, model, x=np.random.default_rng(1).random((3, 6), np.float32), **truth)
    axes = {"class": 0, "embedding": 0, "scores": 0}
    found = assess(
        engine_of(model, {"x": 0}),
        Reference(model),
        samples,
        None,
        tolerance=TOLERANCE,
        axes={"x": 0},
        output_axes=axes,
    )
    assert (found.output, found.over_bound) == (output, 0)


@pytest.mark.parametrize("truth", [{"labels": np.array([1, 9, 3])}, {"labels": np.array([9, 1, 3])}])
def test_labels_beyond_the_classes_are_refused(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    model = two_outputs()
    samples = file_of(tmp_path, model, x=np.zeros((3, 6), np.float32), **truth)
    with pytest.raises(ModelRefused, match="labels go from 9 to 9; the output has 4 classes"):
        assess(engine_of(model, {}), Reference(model), samples, "top1", tolerance=TOLERANCE)


def test_rows_elsewhere_than_in_front_meet_in_one_batch(tmp_path: Path) -> None:
    """A state [layers, rows, width]: samples come whole, and are joined along the axis that carries rows."""
    from onnx import helper

    model = build(
        [helper.make_node("Transpose", ["s"], ["y"], perm=[0, 2, 1])],
        {"s": (FLOAT, [2, "N", 3])},
        {"y": (FLOAT, [2, 3, "N"])},
    )
    states = np.random.default_rng(0).random((6, 2, 1, 3), np.float32)
    sizes: list[tuple[int, ...]] = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(inputs["s"].shape)
        return {"y": inputs["s"].transpose(0, 2, 1)}

    samples = file_of(tmp_path, model, s=states)
    found = assess(
        run, Reference(model), samples, None, tolerance=TOLERANCE, axes={"s": 1}, output_axes={"y": 2}, rows=4
    )
    assert sizes == [(2, 1, 3), (2, 4, 3), (2, 1, 3)]
    assert found.worst == ()


def test_a_batch_is_bounded_in_bytes() -> None:
    sizes: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"][:, :1]}

    spec = TensorSpec("x", "FP32", (-1, 2**22))  # 16 MiB a row
    samples = DrawnSamples(find_sampler([spec], {"x": 0}, run, integer_limits(False)), 9)
    sizes.clear()
    assess(
        run,
        lambda inputs: {"y": inputs["x"][:, :1]},
        samples,
        None,
        tolerance=TOLERANCE,
        axes={"x": 0},
        output_axes={"y": 0},
    )
    assert sizes == [1, 3, 3, 2]


def test_no_batch_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    model, (x, labels) = linear(), digits()
    samples = file_of(tmp_path, model, x=x, labels=labels)
    found = assess(engine_of(model, {}), Reference(model), samples, None, tolerance=TOLERANCE, budget_s=0.0)
    assert (found.samples, found.available, len(found.shares)) == (1, 50, 1)


@pytest.mark.parametrize(("truth", "metric"), [("labels", "top1"), ("targets", "rmse"), (None, "cosine")])
def test_default_metrics(truth: str | None, metric: str) -> None:
    assert default_metric(truth) == metric


def test_a_budget_is_held_against_the_loss(tmp_path: Path) -> None:
    exact = judged(tmp_path, lambda row: None)
    assert shortfall(exact, 0.0) == ""
    worse = msgspec.structs.replace(exact, value=exact.reference_value - 0.1, loss=0.1)
    assert shortfall(worse, None) == shortfall(worse, 0.2) == ""
    assert "a loss of 0.1, 0.05 allowed" in shortfall(worse, 0.05)
    assert shortfall(msgspec.structs.replace(exact, value=None, loss=None), 1.0) == "top1 is not a number"


def test_outputs_that_the_metric_does_not_look_at_count_too(tmp_path: Path) -> None:
    """One answers as the reference; of the other the sign is lost."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4), dtype=np.float32)
    np.savez(tmp_path / "s.npz", x=x)
    samples = read_samples(tmp_path / "s.npz", [TensorSpec("x", "FP32", (-1, 4))], with_truth=False)

    def reference(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"first": inputs["x"] * 2, "second": inputs["x"] + 3, "third": (inputs["x"] > 0).astype(np.int64)}

    def engine(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = reference(inputs)
        return {**found, "second": -found["second"]}

    found = assess(engine, reference, samples, None, tolerance=1.0)
    assert found.loss == pytest.approx(0, abs=1e-9)
    assert found.others["second"] > 1.5
    assert found.others["third"] == 0
    assert shortfall(found, 0.01) == ""
    assert "output 'second' is off by" in shortfall(found, 0.01, by_others=True)
    asked = assess(engine, reference, samples, None, tolerance=1.0, output="first")
    assert shortfall(asked, 0.01, by_others=True) == ""
