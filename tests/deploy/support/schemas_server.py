"""What manifests ask of a running server: paths of probes, and names of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx

from tests.deploy.support.promql import adapter_queries, keda_query, metric_names
from tests.deploy.support.render import Object, identity, of_kind
from tests.deploy.support.schemas_names import PROBES, server_pods

__all__ = ["probe_paths", "server_findings"]


_PROMETHEUS_OWN = frozenset({"up"})
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("", "_total")}


def server_findings(objects: list[Object], url: str) -> list[str]:
    """What the server at an address does not have. It must have started."""
    return [*_probes(objects, url), *_metrics(objects, url)]


def probe_paths(objects: list[Object]) -> set[str]:
    """Paths that probes ask for."""
    probes = (container.get(kind) for _, _, container in server_pods(objects) for kind in PROBES)
    return {probe["httpGet"]["path"] for probe in probes if probe}


def _probes(objects: list[Object], url: str) -> Iterator[str]:
    for path in sorted(probe_paths(objects)):
        status = httpx.get(url + path, timeout=10, verify=False).status_code
        if status != 200:
            yield f"probe {path}: the server answers {status}"
    for where, _, container in server_pods(objects):
        yield from (f"{where}: there is no {kind}" for kind in PROBES if kind not in container)


def _metrics(objects: list[Object], url: str) -> Iterator[str]:
    have = _exported(httpx.get(f"{url}/metrics", timeout=10, verify=False).text) | _PROMETHEUS_OWN
    rules = adapter_queries("default", ["pod"])
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        for metric in one["spec"]["metrics"]:
            name = metric["pods"]["metric"]["name"]
            if name not in rules:
                yield f"{'/'.join(identity(one))}: the adapter makes no metric {name}"
            else:
                yield from _unknown(one, rules[name], have)
    for one in of_kind(objects, "ScaledObject"):
        queries = [trigger["metadata"]["query"] for trigger in one["spec"]["triggers"]]
        if keda_query() not in queries:
            yield f"{'/'.join(identity(one))}: its query is not the one of the monitoring component"
        for query in queries:
            yield from _unknown(one, query, have)


def _unknown(one: Object, query: str, have: set[str]) -> Iterator[str]:
    where = "/".join(identity(one))
    try:
        yield from (f"{where}: the server has no metric {name}" for name in sorted(metric_names(query) - have))
    except ValueError as error:
        yield f"{where}: not PromQL: {error}"


def _exported(page: str) -> set[str]:
    """Names of samples, also of families that have none yet."""
    families = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    return {name + suffix for name, kind in families for suffix in _SUFFIXES.get(kind, ("",))}
