"""Alerts on paper: their words, their runbook, and promtool's cases of when they fire and when they do not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.support import promql
from tests.deploy.support.prometheus import promtool
from tests.support.servers import ROOT

CASES = sorted((Path(__file__).parent / "alerts").glob("*.yaml"))
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
ALERTS = promql.alerts()
ENTRY = re.compile(r"\*\*Means\*\*: .+\*\*Look at\*\*: .+\*\*Do\*\*: .+", re.DOTALL)


def runbook_entries(text: str) -> dict[str, str]:
    """The text of each entry of the section on alerts, by its heading."""
    section = re.search(r"^## Alerts\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    parts = re.split(r"^### (.+)\n", section[1], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def fired_and_silent() -> tuple[set[str], set[str]]:
    """Alerts that a case expects to fire, and those that a whole case expects never to."""
    fires, silent = set(), set()
    for file in CASES:
        for case in yaml.safe_load(file.read_text())["tests"]:
            expected = {(at["alertname"], bool(at["exp_alerts"])) for at in case["alert_rule_test"]}
            loud = {name for name, is_loud in expected if is_loud}
            fires |= loud
            silent |= {name for name, _ in expected} - loud
    return fires, silent


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert: dict[str, Any] = ALERTS[name]
    assert name.startswith("Bitserve")
    assert alert["labels"]["severity"] in {"critical", "warning"}
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert len(notes["description"]) > len(notes["summary"])
    assert notes["runbook_url"] == f"{RUNBOOK.relative_to(ROOT)}#{name.lower()}"
    promql.without_threshold(alert["expr"])


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    entries = runbook_entries(RUNBOOK.read_text())
    assert set(entries) == set(ALERTS)
    assert [name for name, text in entries.items() if not ENTRY.search(text)] == []


def test_an_entry_without_an_alert_is_seen() -> None:
    text = RUNBOOK.read_text().replace("### BitserveDown\n", "### BitserveDwon\n")
    assert set(runbook_entries(text)) ^ set(ALERTS) == {"BitserveDown", "BitserveDwon"}


def test_links_within_the_runbook_lead_somewhere() -> None:
    section = "".join(f"### {name}\n{text}" for name, text in runbook_entries(RUNBOOK.read_text()).items())
    linked = set(re.findall(r"\]\(#(\w+)\)", section))
    assert linked
    assert linked <= {name.lower() for name in ALERTS}


def test_settings_that_the_runbook_names_exist() -> None:
    from app.settings import Settings

    named = set(re.findall(r"BITSERVE_([A-Z_]+)", "".join(runbook_entries(RUNBOOK.read_text()).values())))
    assert {"METRICS", "BUILD_TIMEOUT_S"} <= named <= {field.upper() for field in Settings.model_fields}


def test_promtool_takes_the_rules_and_refuses_a_broken_one(tmp_path: Path) -> None:
    rules = promql.write_rules(tmp_path / "alerts.yaml")
    found = promtool("check", "rules", str(rules))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(ALERTS) + len(promql.recorded())} rules found" in found.stdout
    rules.write_text(rules.read_text().replace("sum by (namespace, model)", "sum by namespace, model", 1))
    assert promtool("check", "rules", str(rules)).returncode != 0


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_not_else(file: Path, tmp_path: Path) -> None:
    promql.write_rules(tmp_path / "alerts.yaml")
    shutil.copy(file, tmp_path)
    found = promtool("test", "rules", file.name, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_there_is_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    fires, silent = fired_and_silent()
    assert name in fires
    assert name in silent


@pytest.mark.parametrize("name", ALERTS)
@pytest.mark.parametrize("threshold", ["1e12", "-1"])
def test_the_cases_see_a_wrong_threshold(name: str, threshold: str, tmp_path: Path) -> None:
    """Never reached, or always: one of the two kinds of case fails."""
    rules = promql.rules()
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == name):
        rule["expr"] = f"({promql.without_threshold(rule['expr'])}) > {threshold}"
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    (file,) = [file for file in CASES if f"alertname: {name}\n" in file.read_text()]
    shutil.copy(file, tmp_path)
    found = promtool("test", "rules", file.name, cwd=tmp_path)
    assert found.returncode != 0
    assert name in found.stdout + found.stderr
