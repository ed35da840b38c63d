"""What the page says of a search over precisions: its table, its figure, and the words for an engine of few bits."""

from __future__ import annotations

import re
import warnings

import msgspec
import numpy as np
import onnx
import pytest

from engines.report import Report
from engines.report_figures import figures
from engines.report_page import page
from engines.report_search import search_figure
from engines.spec import Spec
from tests.report.conftest import MODEL
from tests.report.searched import LAYERS, int8, searched, trial
from tests.report.test_page import EVIL, SHOWN_EVIL, TAGS, Parsed
from tests.support.builds import built


def words(report: Report) -> str:
    return " ".join(Parsed(page(report)).text.split())


def search_svg(report: Report) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = search_figure(report)
    assert drawn is not None
    return drawn.svg


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A real search: no truth, and a budget that no INT8 engine of all layers holds."""
    images = np.load(MODEL / "heldout.npz")["image"][:48] / np.float32(255)
    spec = Spec(accuracy_budget=1e-4, calibrator="minmax", trials=6, objective="latency")
    model = onnx.load(MODEL / "1/model.onnx")
    return built(tmp_path_factory.mktemp("searched"), model, spec, calibration={"image": images})[1]


def test_a_real_search_is_told(real: Report) -> None:
    assert (real.budget, real.decisions_count) == (1e-4, True)
    trials = [one for one in real.candidates if one.trial]
    assert 1 <= len(trials) <= 6
    assert all(one.latency_us for one in trials)
    shown = words(real)
    assert f"{len(real.candidates)} engines were tried. A loss of up to 0.0001 was allowed" in shown
    assert "the larger of the two is held against the budget" in shown
    assert "Trials of the search were judged by fewer samples" in shown
    assert "not measured here" in shown  # the INT8 engines that failed were not raced
    drawn = Parsed(search_svg(real)).text
    assert "chosen" in drawn
    assert "budget 0.0001" in drawn
    assert "trial" in drawn


def test_fp32_alone_has_no_search(report: Report) -> None:
    assert "search" not in figures(report)
    shown = words(report)
    assert "No other was tried." in shown
    assert "was allowed" not in shown
    assert "fewer bits" not in shown


def test_a_row_of_the_table_has_every_figure(report: Report) -> None:
    engine = int8(
        report, "int8 minmax", 0.0042, 12345.0, interval=(-0.0012, 0.0081), decisions_changed=7, value=0.93,
        on_front=True,
    )  # fmt: skip
    shown = words(searched(report, engine, chosen="int8 minmax"))
    numbers = "0.93 0.0042 \u22120.0012 to 0.0081 7 of 64 81 \u00b5s 12,345 128.0 KiB"
    assert f"int8 minmax {numbers} passed , chosen, on the front" in shown
    assert "failed : a loss of 0.2, 0.01 allowed" in shown
    assert "all 7 layers that can be INT8 are" in shown


def test_changed_decisions_have_their_interval(report: Report) -> None:
    """None changed of the 64 samples; of all that there may be, that tells little."""
    assert report.accuracy.decisions_changed == 0
    assert "Largest score elsewhere in 0 of 64 samples, with 95 % a share between 0 and 0.0566" in words(report)


def test_layers_that_stayed_float_are_named(report: Report) -> None:
    shown = words(searched(report))
    assert "INT8 in 5 layers; 2 more stayed in floating point" in shown
    assert all(layer in shown for layer in LAYERS)


def test_many_layers_that_stayed_float_are_bounded(report: Report) -> None:
    names = tuple(f"layer {i}" for i in range(1000))
    shown = words(searched(report, int8(report, "wide", 0.001, 3000.0, float_layers=names), chosen="wide"))
    assert "layer 199 " in shown
    assert "layer 200 " not in shown
    assert "And 800 more" in shown


def test_what_could_not_be_built_has_no_figures(report: Report) -> None:
    broken = int8(
        report, "int8 broken", None, None, value=None, metric="", samples=0, size_bytes=0, decisions_changed=None,
        passed=False, reason="it does not compile",
    )  # fmt: skip
    assert "int8 broken failed : it does not compile" in words(searched(report, broken))


def test_engines_of_several_targets_are_told_apart(report: Report) -> None:
    elsewhere = int8(report, "int8 for a GPU", 0.001, None, target="tensorrt", judged_by="ONNX Runtime")
    shown = words(searched(report, elsewhere))
    assert shown.count("answers by") == 1
    assert "int8 for a GPU for tensorrt, answers by ONNX Runtime" in shown
    assert "Not drawn: 2 of 4, for another target or without one of the two figures" in shown


def test_hostile_names_stay_text(report: Report) -> None:
    evil = int8(
        report, EVIL, 0.001, 3000.0, target=EVIL, judged_by=EVIL, metric=EVIL, reason=EVIL, float_layers=(EVIL, EVIL)
    )
    hostile = msgspec.structs.replace(searched(report, evil, chosen=EVIL), spec={"objective": EVIL})
    parsed = Parsed(page(hostile))
    assert parsed.tags <= TAGS
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "src"]
    assert parsed.text.count(SHOWN_EVIL) >= 7


def test_many_trials_make_a_page_of_bounded_size(report: Report) -> None:
    rng = np.random.default_rng(0)
    many = [
        trial(report, i, float(loss), float(pace), passed=bool(loss < 0.01))
        for i, (loss, pace) in enumerate(zip(rng.exponential(0.02, 10_000), rng.normal(2000, 300, 10_000), strict=True))
    ]
    text = page(searched(report, *many))
    assert "10,003 engines were tried" in text
    assert "And 9,995 more: the report in JSON has them all." in text
    assert text.count("(trial ") == 5
    assert len(text) < 1_500_000


def test_the_figure_shows_the_choice_the_front_and_the_budget(report: Report) -> None:
    shown = Parsed(search_svg(searched(report, int8(report, "int8 lossless", 0.0, 1500.0, on_front=True)))).text
    for part in ("chosen", "front", "budget 0.01", "passed", "rows/s (more is better)", "loss"):
        assert part in shown
    assert "trial" not in shown
    assert "failed" not in shown  # it was not timed


@pytest.mark.parametrize(
    ("objective", "said"), [("latency", "latency of one row alone"), ("size", "size of the engine")]
)
def test_the_figure_has_the_axis_of_the_objective(report: Report, objective: str, said: str) -> None:
    asked = msgspec.structs.replace(searched(report), spec={"objective": objective})
    assert f"{said} (less is better)" in Parsed(search_svg(asked)).text


@pytest.mark.parametrize("budget", [None, 0.0, 1e-6, 0.01, 1e6])
@pytest.mark.parametrize(
    ("losses", "paces"),
    [
        ((0.0, 0.0, 0.0), (5.0, 5.0, 5.0)),
        ((-0.3, 0.0, 0.9), (1.0, 2.0, 3.0)),
        ((1e-14, 1e-9, 1e30), (1e-3, 1.0, 1e9)),
        ((-1e20, -1e-9, -1e-9), (1.0, 1.0, 1e12)),
    ],
)  # fmt: skip
def test_any_figures_can_be_drawn(
    report: Report, losses: tuple[float, ...], paces: tuple[float, ...], budget: float | None
) -> None:
    tried = tuple(
        int8(report, f"int8 {i}", *pair, on_front=i > 0) for i, pair in enumerate(zip(losses, paces, strict=True))
    )
    drawn = msgspec.structs.replace(report, candidates=tried, chosen="int8 0", budget=budget)
    svg = search_svg(drawn)
    shown = Parsed(svg).text
    assert "chosen" in shown
    assert ("budget" in shown) == (budget is not None)
    assert "nan" not in svg


def test_without_speeds_there_is_no_figure(report: Report) -> None:
    tried = tuple(msgspec.structs.replace(one, latency_us=None, rows_per_s=None) for one in searched(report).candidates)
    untimed = msgspec.structs.replace(searched(report), candidates=tried)
    assert "search" not in figures(untimed)
    assert words(untimed).count("not measured here") == 3


@pytest.mark.parametrize(
    ("over", "said"),
    [(0, "None of 64 samples differs"), (1, "1 of 64 samples differs"), (9, "9 of 64 samples differ ")],
)
def test_answers_that_move_are_no_failure(report: Report, over: int, said: str) -> None:
    accuracy = msgspec.structs.replace(report.accuracy, over_bound=over, tolerance=2**-4, loss=0.004)
    shown = words(msgspec.structs.replace(searched(report), accuracy=accuracy))
    assert "that alone is no failure" in shown
    assert said in shown
    assert "by more than 6.25 % of its largest answer" in shown
    assert "What counts is the loss of top1, 0.004; 0.01 is allowed." in shown
    assert "samples agree" not in shown


def test_the_words_for_fp32_stay(report: Report) -> None:
    """Also where it was chosen out of a search."""
    shown = words(searched(report, chosen="fp32"))
    assert "All 64 samples agree" in shown
    assert "fewer bits" not in shown


def test_a_pruned_engine_of_fp32_is_judged_by_its_loss_too(report: Report) -> None:
    pruned = int8(report, "fp32, 2:4", 0.001, 3000.0, precision="fp32", int8_layers=0)
    shown = words(searched(report, pruned, chosen="fp32, 2:4"))
    assert "that alone is no failure" in shown
    assert "INT8 in" not in shown


@pytest.mark.parametrize(
    "around",
    [
        [(1.00, 0.0055), (1.01, 0.006), (0.99, 0.0065)],  # above it
        [(1.00, 0.0045), (1.01, 0.004), (0.99, 0.0035), (1.05, 0.005), (1.10, 0.0052)],  # below it and to its right
        [(0.95, 0.005), (1.05, 0.005), (1.00, 0.004), (1.02, 0.0095)],  # all but above it, where the budget is near
    ],
)  # fmt: skip
def test_the_label_of_the_choice_covers_no_point(report: Report, around: list[tuple[float, float]]) -> None:
    places = [(1.0, 0.005), (0.8, 0.0), (1.2, 0.009), *around]
    tried = tuple(int8(report, f"int8 {i}", loss, 1000 * share) for i, (share, loss) in enumerate(places))
    svg = search_svg(msgspec.structs.replace(report, candidates=tried, chosen="int8 0", budget=0.01))
    label = re.search(r'x="([\d.]+)" y="([\d.]+)"[^>]*>chosen<', svg)
    assert label is not None
    x, baseline = map(float, label.groups())
    points = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--accent\)', svg)
    assert len(points) == len(places) + 1  # and one in the legend
    half_width, height = 19, 9  # of six letters at 10.5 points
    assert not [p for p in points if abs(float(p[0]) - x) < half_width and -height < float(p[1]) - baseline < 2]
