"""What the time limit of a spec covers: all that is tried beside FP32, and one variant in any case. By real builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines import engine, precision
from engines.search import Outcome
from engines.spec import Spec
from tests.engines.test_tryouts import tried as of_figures
from tests.engines.test_tryouts import tryouts
from tests.support.builds import built
from tests.support.onnx_models import FLOAT, build

CNN = onnx.load(Path(__file__).parents[2] / "model_repo" / "fashion_cnn" / "1" / "model.onnx")
IMAGES = np.load(Path(__file__).parents[2] / "model_repo" / "fashion_cnn" / "heldout.npz")["image"]
NO_TIME_S = 1e-3
NO_MORE = "no more variants were tried after 0.001 s"


def tried(folder: Path, spec: Spec) -> tuple[list[str], tuple[str, ...]]:
    """The precisions of all that was tried after FP32, and what was said of it."""
    pictures = IMAGES[:32].astype(np.float32) / 255
    _, report = built(folder, CNN, spec, calibration={"image": pictures})
    return [one.precision for one in report.candidates[1:]], report.notes


def test_quantizing_ends_with_its_first_variant(tmp_path: Path) -> None:
    precisions, notes = tried(tmp_path, Spec(time_limit_s=NO_TIME_S))
    assert precisions == ["int8"]
    assert notes.count(NO_MORE) == 1


def test_pruning_is_within_it(tmp_path: Path) -> None:
    """Every share of the filters loses too much; the first takes all the time, and INT8 is not begun."""
    spec = Spec(sparsity="channels", accuracy_budget=1e-9, metric="cosine", time_limit_s=NO_TIME_S)
    precisions, notes = tried(tmp_path, spec)
    assert precisions == ["fp32"]
    assert notes.count(NO_MORE) == 1


def test_a_precision_that_was_asked_for_is_tried_after_pruning_took_all_the_time(tmp_path: Path) -> None:
    spec = Spec(precision="int8", sparsity="2:4", accuracy_budget=0.5, metric="cosine", time_limit_s=NO_TIME_S)
    precisions, _ = tried(tmp_path, spec)
    assert precisions == ["fp32", "int8"]


def test_halves_are_within_it(tmp_path: Path) -> None:
    precisions, notes = tried(tmp_path, Spec(objective="size", time_limit_s=NO_TIME_S))
    assert precisions == ["fp16"]
    assert "FP16 as other targets compute it was not judged: 0.001 s were over" in notes


class Passing:
    """A limit of 60 s, of which each look takes 10."""

    seconds, left_s = 60.0, 60.0

    @property
    def is_over(self) -> bool:
        return self.left_s <= 0


@pytest.mark.parametrize(("passes_at", "made"), [(None, 3), (1, 6), (3, 6)])
def test_while_no_int8_is_good_enough_half_of_it_is_left_for_the_search(passes_at: int | None, made: int) -> None:
    names, limit = [f"int8 {i}" for i in range(9)], Passing()
    found = tryouts(of_figures("fp32", Outcome(0, 1)), of_figures("fp16", Outcome(0, 1)))
    seen = []
    variants = (of_figures(name, Outcome(0.1, 1)).variant for name in names)
    for variant in precision._in_time(variants, limit, found, reserve_s=30.0):  # type: ignore[arg-type]
        seen.append(variant.name)
        limit.left_s -= 10
        reason = "" if len(seen) == passes_at else "too much"
        found.tried.append(of_figures(variant.name, Outcome(0.1, 1), reason=reason))
    assert len(seen) == made
    assert found.notes == [
        "no more variants were tried after 60 s" if passes_at
        else "no more variants were tried after 30 s: the others are for the search"
    ]  # fmt: skip


@pytest.mark.parametrize(("budget_s", "ran", "there_are"), [(1e-9, 1, 6), (60.0, 5, 5)])
def test_looking_for_refused_samples_ends_with_the_time_for_samples(
    budget_s: float, ran: int, there_are: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth is refused, if it is come to."""
    monkeypatch.setattr(engine, "_CHECK_BUDGET_S", budget_s)
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Cast", ["e"], ["y"], to=TensorProto.INT64, name="cut"),
    ]
    model = build(nodes, {"x": (FLOAT, ["N", 2])}, {"y": (TensorProto.INT64, ["N", 2])})
    x = np.zeros((6, 2), np.float32)
    x[3] = 80
    manifest, report = built(tmp_path, model, Spec(precision="fp32"), calibration={"x": x})
    assert (report.accuracy.samples, report.accuracy.available) == (ran, there_are)
    assert any("samples are refused" in note for note in manifest.notes) == (ran > 3)
