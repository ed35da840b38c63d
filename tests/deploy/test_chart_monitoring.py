"""The chart ships the same rules and dashboards as the kustomize component, from the same files."""

from __future__ import annotations

import json

from tests.deploy.support.render import CHART, DEPLOY, comparable, helm_lint, helm_template, kustomize_with

COMPONENT = DEPLOY / "kubernetes" / "components" / "monitoring"
KINDS = {"ServiceMonitor", "PrometheusRule"}


def test_it_gives_what_the_component_gives() -> None:
    whole, plain = (helm_template(sets=(f"monitoring.enabled={flag}",)) for flag in ("true", "false"))
    before = comparable(plain)
    ours = {key: one for key, one in comparable(whole).items() if key not in before}
    component = kustomize_with(COMPONENT, flavour="cpu", namespace="default")
    theirs = {
        key: one
        for key, one in comparable(component).items()
        if key[0] in KINDS or (key[0] == "ConfigMap" and "dashboard" in key[1])
    }
    assert set(ours) == set(theirs)
    assert len(ours) == 6
    for key, one in ours.items():
        expected = theirs[key]
        expected["metadata"].pop("namespace", None)
        if key[0] == "ConfigMap":
            (name,) = one["data"]
            assert json.loads(one["data"][name]) == json.loads(expected["data"][name])
        else:
            assert one == expected


def test_the_runbook_may_be_elsewhere() -> None:
    made = helm_template(sets=("monitoring.enabled=true", "monitoring.runbook=https://wiki/bitserve"))
    (rules,) = [one for one in made if one["kind"] == "PrometheusRule"]
    urls = [rule["annotations"]["runbook_url"] for group in rules["spec"]["groups"] for rule in group["rules"]
            if "alert" in rule]  # fmt: skip
    assert urls
    assert all(url.startswith("https://wiki/bitserve#") for url in urls), urls


def test_labels_are_those_that_grafana_looks_for() -> None:
    made = helm_template(sets=("monitoring.enabled=true",))
    boards = [one for one in made if one["metadata"]["name"].startswith("bitserve-dashboard-")]
    assert [one["metadata"]["labels"]["grafana_dashboard"] for one in boards] == ["1"] * 4


def test_nothing_of_it_that_is_no_object_is_in_the_chart() -> None:
    helm_lint()
    ignored = (CHART / ".helmignore").read_text().splitlines()
    assert {"monitoring/*.py", "monitoring/README.md", "monitoring/kustomization.yaml"} <= set(ignored)
