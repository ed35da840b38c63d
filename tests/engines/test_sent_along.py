"""What comes with a model changes its build: samples, sizes, pixels; and a refusal names the layer that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.agreement import WrongEngine
from engines.errors import ModelRefused
from engines.spec import ImageInput, Spec
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build, linear

INT64 = TensorProto.INT64
F32 = np.float32
make = helper.make_node


def picky() -> onnx.ModelProto:
    """Takes numbers from 1000 to 1005 alone."""
    nodes = [make("Sub", ["i", "thousand"], ["j"]), make("Gather", ["table", "j"], ["y"])]
    constants = {"thousand": np.array(1000), "table": np.random.default_rng(0).standard_normal((6, 3)).astype(F32)}
    return build(nodes, {"i": (INT64, ["N", 2])}, {"y": (FLOAT, ["N", 2, 3])}, constants)


def test_samples_of_the_sender_stand_in_where_none_can_be_made_up(tmp_path: Path) -> None:
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    with pytest.raises(ModelRefused, match="no sample input could be run by ONNX Runtime"):
        built(tmp_path / "without", picky())
    samples = np.random.default_rng(0).integers(1000, 1006, (20, 2))
    manifest, report = built(tmp_path / "with", picky(), calibration={"i": samples})
    assert manifest.proof.batchable, manifest.proof.reason
    assert (report.accuracy.samples, report.accuracy.synthetic, report.accuracy.over_bound) == (20, False, 0)


def test_samples_that_the_engine_refuses_are_said(tmp_path: Path) -> None:
    nodes = [make("Exp", ["x"], ["e"]), make("Cast", ["e"], ["y"], to=INT64, name="cut")]
    model = build(nodes, {"x": (FLOAT, ["N", 2])}, {"y": (INT64, ["N", 2])})
    x = np.zeros((5, 2), F32)
    x[3] = 80
    manifest, report = built(tmp_path, model, calibration={"x": x})
    assert any(note.startswith("1 of 5 samples are refused, the first is 3: Cast 'cut'") for note in manifest.notes)
    assert report.accuracy.samples == 4


def test_the_first_layer_that_differs_is_named(tmp_path: Path) -> None:
    """OpenVINO 2026.4 takes the corners of regions otherwise than ONNX Runtime."""
    nodes = [
        make("Relu", ["x"], ["positive"], name="before"),
        make("RoiAlign", ["positive", "rois", "which"], ["pooled"], output_height=2, output_width=2, name="culprit"),
        make("Neg", ["pooled"], ["y"], name="after"),
    ]
    constants = {"rois": np.array([[0, 0, 3, 3], [1, 1, 2, 3]], F32), "which": np.array([0, 0])}
    model = build(nodes, {"x": (FLOAT, [1, 2, 4, 4])}, {"y": (FLOAT, [2, 2, 2, 2])}, constants)
    with pytest.raises(WrongEngine, match="the first layer that differs is RoiAlign 'culprit'"):
        built(tmp_path, model)


def test_pixels_are_taken_and_sizes_are_fixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 3, 3, 3)).astype(F32), "axes": np.array([2, 3])}
    nodes = [make("Conv", ["x", "w"], ["c"]), make("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0)]
    model = build(nodes, {"x": (FLOAT, ["N", 3, "H", "W"])}, {"y": (FLOAT, ["N", 4])}, {"w": constants["w"]})
    image = ImageInput(mean=(120, 115, 100), scale=(58, 57, 57))
    spec = Spec(inputs={"x": image}, shapes={"x": (3, 12, 10)}, max_batch=4, objective="latency")
    pixels = rng.integers(0, 256, (6, 12, 10, 3), np.uint8)
    manifest, report = built(tmp_path, model, spec, calibration={"x": pixels})
    (given,) = manifest.inputs
    assert (given.datatype, given.shape, given.batch_axis) == ("UINT8", (-1, 12, 10, 3), 0)
    assert (manifest.max_batch, manifest.streams, report.max_batch) == (4, 1, 4)
    assert (report.accuracy.samples, report.accuracy.over_bound) == (6, 0)
    assert report.passes[-1].name == "pixels of input 'x'"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (Spec(shapes={"z": (3,)}), "shapes names 'z'; the model's inputs are"),
        (Spec(shapes={"x": (3,)}), "only those of -1 may be given a size"),
        (Spec(inputs={"x": ImageInput()}), "declared as an image; the model has FP32"),
        (Spec(metric="cosine", accuracy_budget=0.1), "accuracy_budget needs samples to judge by"),
        (Spec(metric="top1"), "needs a validation set"),
        (Spec(precision="int8"), "precision 'int8' needs calibration samples: send `calibration`"),
        (Spec(precision="binary"), "precision 'binary' is not built yet"),
    ],
)
def test_what_is_asked_and_does_not_fit_is_refused(spec: Spec, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=said):
        built(tmp_path, linear(), spec)


def test_a_model_that_loses_too_much_is_refused(tmp_path: Path) -> None:
    """The targets are what the reference answers: an engine that is right loses nothing, whatever the budget."""
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(F32)
    targets = x @ np.zeros((16, 4), F32)
    spec = Spec(metric="rmse", accuracy_budget=0.0)
    _, report = built(tmp_path, linear(scale=0), spec, validation={"x": x, "targets": targets})
    assert report.candidates[0].value == report.accuracy.reference_value


def test_a_sample_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    ids = np.full((12, 2), 1000)
    ids[2] = 4000
    with pytest.raises(ModelRefused, match=r"sample 2 cannot be run by ONNX Runtime: .*idx=300\d"):
        built(tmp_path, picky(), calibration={"i": ids + np.arange(12)[:, None] % 3})
