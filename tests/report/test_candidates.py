"""Which engines a page shows, where a plot has them, and what was held against the budget."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from engines.report import Report
from engines.report_candidates import axis_of, chosen_of, held_loss, places, shown
from tests.report.searched import int8, searched, trial


def asking(report: Report, objective: object) -> Report:
    return msgspec.structs.replace(report, spec={"objective": objective})


def test_few_are_all_shown_as_they_were_tried(report: Report) -> None:
    found = shown(searched(report))
    assert [one.name for one in found.rows] == ["fp32", "int8", "mixed"]
    assert found.left_out == 0


def test_of_many_trials_the_best_are_shown_and_the_rest_counted(report: Report) -> None:
    trials = [trial(report, i, 0.001, 1000.0 + i, passed=i % 2 == 0) for i in range(10_000)]
    random.Random(1).shuffle(trials)
    late = int8(report, "int8 late", None, None, passed=False, reason="no", samples=0)
    found = shown(searched(report, *trials, late))
    assert [one.name for one in found.rows] == [
        "fp32", "int8", "mixed", "int8 late", *(f"mixed (trial {i})" for i in (9998, 9996, 9994, 9992, 9990)),
    ]  # fmt: skip
    assert found.left_out == 10_000 - 5


def test_the_best_trials_are_so_by_the_objective(report: Report) -> None:
    slow = trial(report, 1, 0.001, 10.0)
    fast = trial(report, 2, 0.001, 20.0)
    small = msgspec.structs.replace(trial(report, 3, 0.001, 5.0), size_bytes=1)
    searching = searched(report, slow, fast, small)
    for objective, numbers in (("throughput", [2, 1, 3]), ("latency", [2, 1, 3]), ("size", [3, 1, 2])):
        rows = shown(asking(searching, objective)).rows[3:]
        assert [one.name for one in rows] == [f"mixed (trial {number})" for number in numbers]


def test_a_table_is_bounded_and_keeps_the_chosen_and_the_front(report: Report) -> None:
    others = [int8(report, f"int8 {i}", 0.001, 100.0) for i in range(500)]
    front = int8(report, "int8 front", 0.001, 100.0, on_front=True)
    last = int8(report, "the last", 0.001, 100.0)
    found = shown(searched(report, *others, front, last, chosen="the last"))
    assert len(found.rows) == 100
    assert {"fp32", "mixed", "int8 front", "the last"} <= {one.name for one in found.rows}
    assert found.left_out == 505 - 100


def test_the_chosen_one_has_passed(report: Report) -> None:
    """Two attempts may have the same name where they keep as many layers in float."""
    again = int8(report, "mixed again", 0.2, None, passed=False, reason="no")
    good = int8(report, "mixed again", 0.002, 2000.0)
    assert chosen_of(searched(report, again, good, chosen="mixed again")) is good
    assert chosen_of(searched(report, again, chosen="mixed again")) is None


@pytest.mark.parametrize("objective", ["throughput", None, "something else", ["throughput"]])
def test_what_is_asked_for_is_throughput_unless_it_is_something_known(report: Report, objective: object) -> None:
    assert axis_of(asking(report, objective)).is_more_better
    assert axis_of(msgspec.structs.replace(report, spec={})).of(report.candidates[0]) == report.candidates[0].rows_per_s


def test_a_place_needs_both_figures(report: Report) -> None:
    elsewhere = int8(report, "int8 for a GPU", 0.001, None, target="tensorrt")
    worthless = int8(report, "int8 worthless", None, 5000.0)
    strange = int8(report, "int8 strange", math.nan, 5000.0)
    searching = searched(report, elsewhere, worthless, strange)
    assert [place.candidate.name for place in places(searching)] == ["fp32", "mixed"]
    assert [place.x for place in places(asking(searching, "latency"))] == [1000.0, 400.0]
    sized = places(asking(searching, "size"))
    assert [place.candidate.name for place in sized] == ["fp32", "int8", "mixed"]  # a file for a GPU is something else


def test_decisions_count_as_loss_where_the_report_says_so(report: Report) -> None:
    half = int8(report, "int8 half", 0.001, 100.0, decisions_changed=32, samples=64)
    none = msgspec.structs.replace(half, decisions_changed=None)
    counting = msgspec.structs.replace(report, decisions_count=True)
    assert held_loss(report, half) == 0.001
    assert held_loss(counting, half) == 0.5
    assert held_loss(counting, none) == 0.001
    assert held_loss(counting, msgspec.structs.replace(half, loss=None)) is None


@pytest.mark.parametrize(
    ("objective", "largest", "unit"),
    [
        ("latency", 900, (1, " \u00b5s")), ("latency", 1000, (1e3, " ms")), ("latency", 5e6, (1e6, " s")),
        ("size", 1000, (1, " bytes")), ("size", 2**20, (2**20, " MiB")), ("throughput", 0.5, (1, "")),
    ],
)  # fmt: skip
def test_an_axis_has_the_unit_that_suits_it(
    report: Report, objective: str, largest: float, unit: tuple[float, str]
) -> None:
    assert axis_of(asking(report, objective)).unit_for(largest) == unit
