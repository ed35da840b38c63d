"""The monitoring component: what kubectl makes of it, and that it fits the server's Service."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.support import promql
from tests.support.servers import ROOT, running

BASE = ROOT / "deploy" / "kubernetes" / "base"


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization; AssertionError with kubectl's words where it makes none."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    return [one for one in yaml.safe_load_all(made.stdout) if one]


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return kustomized(promql.MONITORING)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def test_every_dashboard_is_found_by_grafanas_sidecar(objects: list[dict[str, Any]]) -> None:
    maps = of_kind(objects, "ConfigMap")
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in maps)
    files = {name: text for one in maps for name, text in one["data"].items()}
    assert files == {file.name: file.read_text() for file in (promql.MONITORING / "dashboards").iterdir()}
    assert {one["metadata"]["name"] for one in maps} == {
        f"bitserve-dashboard-{file.removesuffix('.json')}" for file in files
    }


def test_the_rules_come_as_they_are_tested(objects: list[dict[str, Any]]) -> None:
    (rule,) = of_kind(objects, "PrometheusRule")
    assert rule["spec"] == promql.rules()


def test_a_label_for_the_operator_can_be_added(tmp_path: Path) -> None:
    """As the component's head says."""
    shutil.copytree(promql.MONITORING, tmp_path / "monitoring")
    overlay = {"components": ["../monitoring"], "labels": [{"pairs": {"release": "kube-prometheus-stack"}}]}
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = kustomized(tmp_path / "overlay")
    assert {one["kind"] for one in made} == {"ConfigMap", "PrometheusRule", "ServiceMonitor"}
    assert {one["metadata"]["labels"]["release"] for one in made} == {"kube-prometheus-stack"}


def test_the_monitor_fits_the_service(objects: list[dict[str, Any]]) -> None:
    (monitor,) = of_kind(objects, "ServiceMonitor")
    service, *others = [
        one
        for one in of_kind(kustomized(BASE), "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    assert not others
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    for query in [*promql.rule_queries(), promql.Query("KEDA", promql.keda_query())]:
        if promql.metric_names(query.expr) - set(promql.recorded()):
            assert f'job="{job}"' in query.expr, query


def test_the_monitor_asks_where_the_server_answers(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    (monitor,) = of_kind(objects, "ServiceMonitor")
    with running(tmp_path, on_gpu=False) as server:
        answer = httpx.get(server.url + monitor["spec"]["endpoints"][0]["path"], verify=False)
        assert answer.status_code == 200
        assert "bitserve_ready 1.0" in answer.text


def test_the_adapter_asks_for_series_of_pods_of_this_job() -> None:
    rules = yaml.safe_load((promql.MONITORING / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    assert rules
    for rule in rules:
        assert 'namespace!="",pod!="",job="bitserve"' in rule["seriesQuery"]
        assert rule["resources"]["overrides"] == {
            "namespace": {"resource": "namespace"}, "pod": {"resource": "pod"},
        }  # fmt: skip
        assert promql.metric_names(rule["seriesQuery"]) <= promql.metric_names(
            promql.adapter_queries("any", ["any"])[rule["name"]["as"]]
        )


def test_the_query_for_keda_is_one_line() -> None:
    """ScaledObjects and charts name it as one string."""
    assert "\n" not in promql.keda_query()
    assert promql.metric_names(promql.keda_query()) == {"bitserve_queue_duration_seconds_sum"}
