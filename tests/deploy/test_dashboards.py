"""Dashboards on paper: what the generator makes, whole, and without overlap. The live test asks their queries."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from tests.deploy.support import promql

FILES = sorted((promql.MONITORING / "dashboards").glob("*.json"))
BOARDS: dict[str, dict[str, Any]] = {file.stem: json.loads(file.read_text()) for file in FILES}
UNITS = {"none", "s", "µs", "bytes", "percentunit", "reqps", "rowsps", "ops", "watt", "joule"}
"""Ids of Grafana's list of units; another one is shown as text behind the number, so that a slip is not seen there."""
KINDS = {"timeseries", "stat", "heatmap"}
COLUMNS = 24
GRAFANA_10_SCHEMA = 38
OF_GRAFANA = {"__rate_interval"}


def flaws(board: dict[str, Any]) -> list[str]:
    """What Grafana would show wrongly, or not at all."""
    panels = board["panels"]
    found = [f"{panel['title']}: {flaw}" for panel in panels for flaw in _panel_flaws(panel)]
    if len({panel["id"] for panel in panels}) != len(panels):
        found.append("two panels have the same id")
    for one, other in itertools.combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            found.append(f"{one['title']} lies on {other['title']}")
    named = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board)))
    if unknown := used - named - OF_GRAFANA - {"__all"}:
        found.append(f"variables that are not there: {sorted(unknown)}")
    if unused := named - used:
        found.append(f"variables that nothing uses: {sorted(unused)}")
    return found


def _panel_flaws(panel: dict[str, Any]) -> list[str]:
    at = panel["gridPos"]
    checks = {
        "no description": panel.get("description", "").endswith("."),
        "no known unit": panel["fieldConfig"]["defaults"].get("unit") in UNITS,
        "no known kind": panel["type"] in KINDS,
        "outside of the grid": at["x"] >= 0 and at["y"] >= 0 and at["x"] + at["w"] <= COLUMNS,
        "no query": panel["targets"],
        "a fixed data source": all(
            one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in (panel, *panel["targets"])
        ),
        "two queries of the same name": len({one["refId"] for one in panel["targets"]}) == len(panel["targets"]),
    }
    return [flaw for flaw, is_fine in checks.items() if not is_fine]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_there_are_four() -> None:
    assert set(BOARDS) == {"service", "model", "builds", "gpu"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    board = BOARDS[name]
    assert board["schemaVersion"] >= GRAFANA_10_SCHEMA
    assert board["title"].startswith("bitserve / ")
    source = board["templating"]["list"][0]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert flaws(board) == []


def test_flaws_are_found() -> None:
    board = copy.deepcopy(BOARDS["gpu"])
    first, second, third = board["panels"][:3]
    first["gridPos"]["x"] = second["gridPos"]["x"]
    second["fieldConfig"]["defaults"]["unit"] = "wat"
    second["id"] = first["id"]
    third["description"] = ""
    third["targets"][0]["datasource"] = {"type": "prometheus", "uid": "my own"}
    third["targets"][0]["expr"] = 'up{job="$jbo"}'
    assert flaws(board) == [
        f"{second['title']}: no known unit",
        f"{third['title']}: no description",
        f"{third['title']}: a fixed data source",
        "two panels have the same id",
        f"{first['title']} lies on {second['title']}",
        "variables that are not there: ['jbo']",
    ]


@pytest.mark.parametrize("query", promql.panel_queries(), ids=lambda query: query.where)
def test_a_query_is_promql(query: promql.Query) -> None:
    assert promql.metric_names(query.expr)


def test_what_is_not_promql_is_refused() -> None:
    expr = promql.panel_queries()[0].expr
    promql_parser.parse(expr)
    with pytest.raises(ValueError, match=r"invalid promql|unclosed|unexpected"):
        promql_parser.parse(expr + ")")


def test_the_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    script = promql.MONITORING / "make_dashboards.py"
    subprocess.run([sys.executable, "-B", script, tmp_path], check=True, timeout=60)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert made == {file.name: file.read_text() for file in FILES}
