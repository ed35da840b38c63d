"""What README's rows say, of figures that are made up: ratios, goals, voids, growth; and what the plot shows."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import measuring
from benchmarks.peers.parts import batches, connections, memory, models, open_loop, others, resnet, sizes, tiny
from benchmarks.peers.plot import _panels, lines, write_plot
from benchmarks.peers.setup import Effort
from benchmarks.peers.words import row


def figures(rate: float, p50_ms: float = 1.0, p99_ms: float = 2.0) -> dict[str, float]:
    return {"requests_per_s": rate, "p50_ms": p50_ms, "p99_ms": p99_ms, "cpu_s_per_request": 1 / rate}


def found(void: dict[str, str] | None = None, **by_name: dict[str, float]) -> dict[str, Any]:
    names = {"bare": "bare uvicorn", "alone": "in-process"}
    return {"rounds": [{names.get(name, name): one for name, one in by_name.items()}] * 3, "void": void or {}}


def said(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(one["measured"], one["goal"]) for one in rows]


BESIDE = {"bitserve": figures(9000, 0.3, 1.0), "Triton": figures(4500, 0.4, 2.0), "bare": figures(18000)}


def test_the_tiny_model_at_one_connection_and_at_sixteen() -> None:
    alone = figures(90000, 0.01)
    cases = [{"kind": "binary", "connections": count, **found(**BESIDE, alone=alone)} for count in (1, 16)]
    assert said(tiny.rows({"cases": cases})) == [
        ("2.00x (9000 against 4500 requests/s)", ">= 1.00x"),
        ("0.50x (1.00 against 2.00 ms)", "<= 1.10x"),
        ("0.50x (9000 against 18000 requests/s)", ">= 0.65x"),
        ("290 us (300 against 10 us)", "<= 250 us"),
        ("2.00x (9000 against 4500 requests/s)", ">= 1.50x"),
        ("0.50x (1.00 against 2.00 ms)", "<= 1.00x"),
        ("0.50x (9000 against 18000 requests/s)", ">= 1.00x"),
    ]


def test_a_void_run_has_no_number_in_any_row() -> None:
    case = found({"Triton": "3 not 2xx"}, **BESIDE)
    rows = tiny.rows({"cases": [{"kind": "JSON", "connections": 64, **case}]})
    assert [one["measured"] for one in rows] == [
        "void: Triton, 3 not 2xx",
        "void: Triton, 3 not 2xx",
        "0.50x (9000 against 18000 requests/s)",
    ]
    void = found({"bitserve": "did not start"}, Triton=figures(1))
    assert {one["measured"] for one in tiny.rows({"cases": [{"kind": "JSON", "connections": 1, **void}]})} == {
        "void: bitserve, did not start"
    }


def test_others_have_a_row_each() -> None:
    case = found(bitserve=figures(9000), MLServer=figures(900), LitServe=figures(3000), BentoML=figures(450))
    rows = others.rows({"cases": [{"kind": "JSON", "connections": 16, **case}]})
    assert [one["measured"].split(" ")[0] for one in rows] == ["10.00x", "3.00x", "20.00x"]


def test_resnet_is_a_share_of_the_engine_alone() -> None:
    best = {"streams": 1, "threads": 2, "batch": 4}
    case = found(bitserve=figures(96), Triton=figures(60), alone=figures(100))
    rows = resnet.rows({"best": best, **case})
    assert said(rows) == [("96.0% (96.0 against 100.0 rows/s)", ">= 97 %"), ("1.60x (96.0 against 60.0 rows/s)", "-")]


def test_growth_has_a_row_for_each_size_and_cpu_for_a_picture() -> None:
    of_sizes = [{"bytes": size, "kind": "binary", "connections": 4, **found(**BESIDE)} for size in (256, 602112)]
    rows = sizes.rows({"cases": of_sizes})
    assert said(rows)[1:] == [
        ("2.00x (9000 against 4500 requests/s)", "-"),
        ("0.11 ms (Triton 0.22 ms)", "<= 0.3 ms"),
    ]
    many = {"models": 10, "memory_mb": {"bitserve": 150.2, "Triton": 1200.0}, **found(**BESIDE)}
    assert said(models.rows({"cases": [many]}))[1] == ("bitserve 150 MB, Triton 1200 MB", "-")
    assert "[8,64]" in batches.rows({"cases": [{"rows": 8, **found(**BESIDE)}]})[0]["what"]


def test_idle_connections_that_are_not_kept_are_named() -> None:
    figured = {"idle": 1000, "idle_mb": {"bitserve": 8.44, "Triton": None}, "cases": [{"open": 100, **found(**BESIDE)}]}
    assert said(connections.rows(figured))[-1] == ("bitserve 8.4 MB, Triton not kept", "< 20 MB")


def test_an_open_loop_says_latencies_at_a_share_of_each_capacity() -> None:
    able = {"bitserve": 12000.0, "Triton": 6000.0}
    case = {"kind": "JSON", "share": 0.8, "capacity": able, **found({"Triton": "2 of 9 requests failed"}, **BESIDE)}
    assert said(open_loop.rows({"cases": [case]})) == [
        ("bitserve 0.30, 1.00 ms (capacity 12000 requests/s); void: Triton, 2 of 9 requests failed", "-")
    ]


def test_memory_grows_from_the_first_tenth() -> None:
    steps = [
        {"requests": count, "memory_mb": mb} for count, mb in ((50, 80.0), (100, 100.0), (600, 101.0), (1000, 103.5))
    ]
    assert memory.grown_mb(steps) == 3.5
    assert said(memory.rows({"steps": steps, "void": ""})) == [("+3.5 MB of 104 MB", "none")]
    assert said(memory.rows({"steps": [], "void": "did not start"})) == [("void: did not start", "none")]


def test_words_of_a_server_do_not_break_the_table() -> None:
    shown = row("what", "void: x, a | b\nc" + "d" * 999)["measured"]
    assert shown.startswith("void: x, a / b cd")
    assert len(shown) <= 240


def parts() -> dict[str, Any]:
    """Triton void at 16 connections."""
    tiny_cases = [
        {"kind": "JSON", "connections": 1, **found(**BESIDE)},
        {"kind": "JSON", "connections": 16, **found({"Triton": "gone"}, **BESIDE)},
    ]
    beside = found(bitserve=figures(1), MLServer=figures(700))
    return {
        "tiny": {"cases": tiny_cases},
        "others": {"cases": [{"kind": "JSON", "connections": 1, **beside}]},
        "sizes": {"cases": [{"kind": "binary", "bytes": 256, **found(**BESIDE)}]},
    }


def test_a_plot_has_medians_and_no_point_where_a_run_is_void() -> None:
    panels = _panels(parts())
    assert len(panels) == 2
    drawn = lines(next(iter(panels.values())))
    assert drawn["Triton"] == ([1], [4500])
    assert drawn["bitserve"] == ([1, 16], [9000, 9000]), "of the part where it was beside Triton"
    assert drawn["MLServer"] == ([1], [700])


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        write_plot(tmp_path / name, parts())
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert all(word in drawn for word in ("bitserve", "Triton", "MLServer", "bytes of a body"))
    write_plot(tmp_path / "none.svg", {})
    assert not (tmp_path / "none.svg").exists()


@pytest.fixture
def fake_part(monkeypatch: pytest.MonkeyPatch) -> None:
    part = types.ModuleType("benchmarks.peers.parts.fake")
    part.measure = lambda effort: {"twice": 2 * effort.rounds}  # type: ignore[attr-defined]
    part.rows = lambda figured: [row("rounds, twice", str(figured["twice"]))]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, part.__name__, part)
    monkeypatch.setattr(measuring, "PARTS", ("fake", "tiny"))


@pytest.mark.usefixtures("fake_part")
def test_a_part_replaces_what_it_was_and_others_stay(tmp_path: Path) -> None:
    keep = tmp_path / "kept.json"
    before = {"tiny": parts()["tiny"], "fake": {"twice": 1}}
    measured = measuring.measured(["fake"], Effort(rounds=4), before, keep)
    assert measured["fake"]["twice"] == 8
    assert measured["fake"]["machine"]["threads"] >= 1
    assert measuring.too_short({"fake": measured["fake"]}) == ["fake"], "four rounds are not seven"
    assert measuring.too_short(measuring.measured(["fake"], Effort(rounds=9), {})) == []
    assert measuring.too_short(measuring.measured(["fake"], Effort(seconds=1), {})) == ["fake"]
    stored = json.loads(keep.read_text())
    assert stored["parts"]["tiny"] == parts()["tiny"]
    assert stored["rows"][0]["measured"] == "8"
    assert len(stored["rows"]) == 1 + len(tiny.rows(parts()["tiny"]))
