"""What queries name, and where they come from: rules, dashboards, the adapter's rules, KEDA's trigger."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

from tests.support.servers import ROOT

__all__ = [
    "MONITORING", "Query", "Variable", "adapter_queries", "alerts", "keda_query", "metric_names", "panel_queries",
    "panels", "recorded", "rule_queries", "rules", "scaling_queries", "variables", "without_threshold", "write_rules",
]  # fmt: skip

MONITORING = ROOT / "deploy" / "kubernetes" / "components" / "monitoring"
_THRESHOLD = re.compile(r"(==|!=|>=|<=|>|<)\s*[0-9.e-]+\s*$")
_DASHBOARD_VARIABLES = {"$__rate_interval": "5m"}
"""Of Grafana itself; those of a dashboard have regular expressions as their values, of which `.*` is "All"."""


_HURRIED = {"BitserveNoReadyReplica": "2s"}
"""Late scrapes of all pods of a namespace look the same for an evaluation, as was seen on a busy machine."""


class Query(NamedTuple):
    """A query and where it was found."""

    where: str
    expr: str


class Variable(NamedTuple):
    """A label whose values a dashboard lists, of the series that a selector finds."""

    where: str
    selector: str
    label: str


def rules() -> dict[str, Any]:
    """The rules as Prometheus reads them: the `spec` of the PrometheusRule."""
    spec: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
    return spec


def alerts() -> dict[str, dict[str, Any]]:
    """Alerts by name."""
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule}


def recorded() -> dict[str, str]:
    """Queries of recording rules by the name that they give."""
    return {rule["record"]: rule["expr"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule}


def without_threshold(expr: str) -> str:
    """The value that an alert compares. AssertionError where the comparison is not the last thing it does."""
    parsed = promql_parser.parse(expr)
    assert isinstance(parsed, promql_parser.BinaryExpr), expr
    assert isinstance(parsed.rhs, promql_parser.NumberLiteral), expr
    assert _THRESHOLD.search(expr), expr
    return str(parsed.lhs)


def panels() -> dict[str, list[dict[str, Any]]]:
    """The panels of each dashboard."""
    files = sorted((MONITORING / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text())["panels"] for file in files}


def panel_queries() -> list[Query]:
    """With every variable at "All"."""
    return [
        Query(f"{board}/{panel['title']}/{target['refId']}", _of_all(target["expr"]))
        for board, found in panels().items()
        for panel in found
        for target in panel["targets"]
    ]


def _of_all(expr: str) -> str:
    for name, value in _DASHBOARD_VARIABLES.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$\w+", ".*", expr)


def variables() -> list[Variable]:
    """Of all dashboards, but for the data source."""
    found = []
    for file in sorted((MONITORING / "dashboards").glob("*.json")):
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                parts = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                assert parts, variable
                found.append(Variable(f"{file.stem}/${variable['name']}", _of_all(parts[1]), parts[2]))
    return found


def adapter_queries(namespace: str, pods: list[str]) -> dict[str, str]:
    """Of each metric of the adapter, the query that it makes for the pods of an HPA."""
    custom = yaml.safe_load((MONITORING / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    matchers = f'namespace="{namespace}",pod=~"{"|".join(pods)}"'
    return {
        rule["name"]["as"]: rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
        for rule in custom
    }


def keda_query() -> str:
    """Of the trigger."""
    return (MONITORING / "keda-query.promql").read_text().strip()


def rule_queries() -> list[Query]:
    """Of alerts and recording rules."""
    of_alerts = [Query(name, rule["expr"]) for name, rule in alerts().items()]
    return [*of_alerts, *(Query(name, expr) for name, expr in recorded().items())]


def scaling_queries() -> list[Query]:
    """Of HPA and KEDA."""
    return [*(Query(*one) for one in adapter_queries("any", ["any"]).items()), Query("KEDA", keda_query())]


def metric_names(expr: str) -> set[str]:
    """That a query selects; ValueError where it cannot be parsed."""
    return {str(one.name) for one in _selectors(promql_parser.parse(expr))}


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from _selectors(node.lhs)
        yield from _selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _selectors(argument)
    elif hasattr(node, "expr"):
        yield from _selectors(node.expr)


def write_rules(path: Path, *, hurried: bool = False) -> Path:
    """The rules as a file of Prometheus; `hurried` ones fire at once, with `for` left out, or after seconds."""
    spec = rules()
    for rule in (rule for group in spec["groups"] for rule in group["rules"] if hurried):
        rule.pop("for", None)
        if rule.get("alert") in _HURRIED:
            rule["for"] = _HURRIED[rule["alert"]]
    path.write_text(yaml.safe_dump(spec))
    return path
