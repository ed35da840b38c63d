"""What is shown of a document: tables, lines, the plot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from app.bench.plot import draw
from app.bench.seen import Seen
from app.bench.sweep import Level, Settings
from app.bench.table import print_document
from app.bench.words import line

LATENCY = {
    "mean": 2.0, "stddev": 0.1, "min": 1.0, "p50": 1.5, "p90": 2.5, "p95": 3.5, "p99": 14.5, "p99.9": 123.4,
    "max": 1234.5,
}  # fmt: skip


def level(concurrency: int | None, rate: float | None, *, told: bool = True, answered: bool = True) -> dict[str, Any]:
    server = {
        "requests": 2500, "request_ms": 1.9, "queue_ms": 0.25,
        "compute_ms": {"input": 0.1, "infer": 1.0, "output": 0.1}, "other_ms": 0.55,
        "batches": 300, "mean_batch_rows": 8.33, "batch_rows": {"4": 75, "8": 225},
    }  # fmt: skip
    return {
        "concurrency": concurrency, "rate_per_s": rate, "seconds": 5.0, "requests": 2503, "answers": 2500,
        "failures": {"503": {"count": 3, "first": "Exceeds [maximum]\x1b queue size"}}, "requests_per_s": 499.6,
        "rows_per_s": 999.2, "latency_ms": LATENCY if answered else None, "server": server if told else None,
        "driver": {}, "notes": ["look here"],
    }  # fmt: skip


def document(*levels: dict[str, Any], rows: int = 2) -> dict[str, Any]:
    return {
        "model": "m$^{", "version": "3", "url": "http://h:1", "server": "bitserve 0.1.0", "mode": "closed",
        "arrivals": None, "rows": rows, "binary": True, "inputs": "drawn, 64 different requests", "levels": [*levels],
        "notes": [], "interrupted": False,
    }  # fmt: skip


def words(capsys: pytest.CaptureFixture[str], shown: dict[str, Any]) -> str:
    print_document(shown)
    return " ".join(capsys.readouterr().out.split())


def test_every_figure_is_in_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(capsys, document(level(16, None), level(64, None, told=False, answered=False)))
    assert "m$^{ version 3 at http://h:1 (bitserve 0.1.0): closed loop, 2 rows a request, bytes, inputs drawn" in text
    assert "concurrency requests/s rows/s p50 p90 p95 p99 p99.9 max ms failed" in text
    assert "16 500 999 1.50 2.50 3.50 14.50 123.4 1234 3" in text
    assert "64 500 999 - - - - - - 3" in text
    assert "16 0.25 1.20 0.55 8.3 4: 25% 8: 75%" in text
    assert "64 - - - -" in text
    assert "16 503 3 Exceeds [maximum]\\x1b queue size" in text
    assert "note: look here" in text


def test_what_the_server_did_not_tell_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(capsys, document(level(None, 500.0, told=False)))
    assert "rate/s requests/s" in text
    assert "queue" not in text.replace("queue size", "")


def test_a_line_of_a_level() -> None:
    assert line(level(16, None)) == "concurrency 16: 500 requests/s, p50 1.50 ms, p99 14.50 ms, 3 failed"
    assert line(level(None, 500.0, answered=False)) == "500 requests/s: 500 requests/s, 3 failed"


def texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_plot_has_its_axes_with_units_and_every_level(tmp_path: Path) -> None:
    draw(document(*(level(count, None) for count in (1, 16, 64))), tmp_path / "p.svg")
    found = texts(tmp_path / "p.svg")
    for text in (
        "latency (ms, logarithmic)", "throughput (rows/s)", "mean request (ms)", "batches (%)", "p50", "p99.9", "queue",
        "compute", "other", "rows a batch", "4", "8", "m$^{ version 3 at http://h:1 (bitserve 0.1.0)",
    ):  # fmt: skip
        assert text in found, text
    assert found.count("concurrency (requests under way)") == 4
    assert found.count("64") == 4


def test_the_plot_of_an_open_loop_has_what_was_asked_for(tmp_path: Path) -> None:
    shown = document(level(None, 500.0), level(None, 1234.0, told=False), level(None, 4321.0, answered=False), rows=1)
    draw(shown, tmp_path / "p.svg")
    found = texts(tmp_path / "p.svg")
    assert "asked for" in found
    assert "throughput (requests/s)" in found
    assert found.count("rate asked for (requests/s)") == 4
    assert found.count("1234") == 2, "of those panels that have figures of it"
    assert "4321" not in found


def test_the_plot_without_the_servers_account_has_two_panels(tmp_path: Path) -> None:
    draw(document(level(4, None, told=False)), tmp_path / "p.svg")
    assert texts(tmp_path / "p.svg").count("concurrency (requests under way)") == 2


def test_the_same_document_is_the_same_plot(tmp_path: Path) -> None:
    shown = document(level(4, None), level(8, None))
    draw(copy.deepcopy(shown), tmp_path / "a.svg")
    draw(shown, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_live_display_shows_levels_that_are_done_and_the_one_that_runs() -> None:
    from app.bench.live import Terminal

    updates: list[Any] = []
    clock_s = iter([0.0, 0.5, 1.0])
    settings = Settings(5.0, None, 1.0, 8, "poisson", 0)
    display = Terminal(document(level(4, None)), settings, updates.append, lambda: next(clock_s))
    seen = Seen()
    for _ in range(3):
        seen.latencies_ns.extend([2_000_000] * 100)
        display.show(Level(concurrency=16), "measuring", seen)
    seen.failed("503", "full")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(updates[-1])
    console.file.close()
    text = console.export_text()
    assert "concurrency 16, measuring 1 of 5 s: 200 requests/s" in text
    assert "p50 2.00 ms, p99 2.00 ms" in text
    assert "1 of 5 s" in text
    assert " 14.50 " in text, "of the level that is done"
