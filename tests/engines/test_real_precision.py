"""Trained models on real inputs: what `precision: auto` chooses is within a point of FP32, and the report shows why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.manifest import Manifest
from engines.reference import Reference
from engines.report import Report
from engines.spec import Spec
from tests.packaged import DatasetMissing
from tests.support.builds import built
from tests.support.real_models import RealModel, image_classifier, text_direction, voice_activity

POINT = 0.01


def model_or_skip(make: Callable[[], RealModel]) -> RealModel:
    try:
        return make()
    except DatasetMissing as missing:
        pytest.skip(str(missing))


def compiled(folder: Path, real: RealModel) -> tuple[Manifest, Report]:
    return built(folder, real.model, real.spec, calibration=real.calibration, validation=real.validation)


def assert_complete(report: Report, samples: int) -> None:
    """Every engine that was tried is there, with figures or a reason, and the chosen one is within a point of FP32."""
    chosen = next(one for one in report.candidates if one.name == report.chosen)
    fp32 = next(one for one in report.candidates if one.name == "fp32")
    assert chosen.passed
    assert fp32.loss == pytest.approx(0, abs=1e-4)
    assert (chosen.samples, fp32.samples) == (samples, samples)
    assert chosen.loss <= POINT
    assert report.accuracy.loss <= POINT
    for one in report.candidates:
        if one.passed:
            assert one.latency_us > 0, one
            assert one.rows_per_s > 0, one
        else:
            assert one.reason, one
    assert {f"int8 mean_minmax, {form}, 7-bit weights" for form in ("signed", "unsigned")} <= {
        one.name for one in report.candidates
    }


def test_the_classifier_of_photographs_is_what_it_says() -> None:
    """Its graph is written by hand: a cat and a cup of espresso are seen, so its weights are where they belong."""
    real = model_or_skip(lambda: image_classifier(each=1))
    rows = np.concatenate([real.calibration["image"][:1], real.validation["image"][:1]])
    assert Reference(real.model)({"image": rows})["logits"].argmax(axis=1).tolist() == [285, 967]


def test_text_direction_in_eight_bits_is_within_a_point(tmp_path: Path) -> None:
    real = model_or_skip(lambda: text_direction(128, 512))
    manifest, report = compiled(tmp_path, real)
    assert_complete(report, 512)
    assert report.accuracy.reference_value > 0.97
    assert any(one.precision == "int8" and one.passed for one in report.candidates), "none of INT8 is good enough"
    assert manifest.precision in ("fp32", "int8")  # as the race of this machine ends
    assert manifest.proof.batchable, "made-up images are all one to it in 8 bits: lines of text have to show its rows"


def test_voice_activity_keeps_its_accuracy_with_layers_in_float(tmp_path: Path) -> None:
    """INT8 alone loses more than a tenth, and is refused; with the one layer in float that 8 bits spoil it is right."""
    real = model_or_skip(voice_activity)
    spec = Spec(metric="mae", output="output", accuracy_budget=POINT, calibrator="mean_minmax", trials=12)
    few = {name: rows[:96] for name, rows in real.calibration.items()}
    manifest, report = compiled(tmp_path, real._replace(spec=spec, calibration=few))
    assert_complete(report, len(real.validation["targets"]))
    assert all(not one.passed for one in report.candidates if one.precision == "int8")
    mixed = [one for one in report.candidates if one.precision == "mixed" and one.passed]
    assert mixed
    assert all(one.float_layers and one.int8_layers for one in mixed)
    assert manifest.precision in ("fp32", "mixed")
