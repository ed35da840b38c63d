"""A real Prometheus beside servers under load: every query finds something, every alert fires at its fault."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.deploy.support import promql
from tests.deploy.support.prometheus import promtool
from tests.deploy.support.promql import Query, Variable
from tests.deploy.support.site import HOLD_REQUESTS, Site, ask, under_load
from tests.support.fronts import engine_of
from tests.support.onnx_models import linear, place
from tests.support.servers import until
from tests.support.uploads import send

_PATIENCE_S = 10.0
_SLOW_S = 0.5
"""What the 99th percentile may be, by `BitserveLatencyP99High`."""
EXPECTED = {
    "BitserveErrorRateHigh": ("model", {"fours", "held", "sums"}),
    "BitserveLatencyP99High": ("model", {"held"}),
    "BitserveQueueSaturated": ("pod", {"held"}),
    "BitserveRequestsRefused": ("model", {"held"}),
    "BitserveDeadlinesMissed": ("model", {"held"}),
    "BitserveInstanceFailed": ("pod", {"cpu", "lost"}),
    "BitserveDown": ("pod", {"gone"}),
    "BitserveNotReady": ("pod", {"lost"}),
    "BitserveNoReadyReplica": ("namespace", {"lost"}),
    "BitserveRestarting": ("pod", {"fronts"}),
    "BitserveModelUnavailable": ("model", {"broken"}),
    "BitserveModelLoadingLong": ("model", {"late"}),
    "BitserveBuildsFailing": ("namespace", {"prod"}),
    "BitserveBuildsWaiting": ("namespace", {"prod"}),
    "BitserveGpuLost": ("pod", {"lost"}),
    "BitserveGpuMissing": ("pod", {"lost"}),
}
"""Of each alert, a label and the values with which it must have fired. `for` is left out, so others may, too, where a
pod is slow to answer or a model loads: those of `_EXACT` may not."""
OF_PROMETHEUS = {"up": "made by Prometheus for each target: a server that is down exports nothing"}
"""What no server exports and no rule records, with the reason that it is asked for all the same."""
KNOWN_LINTS = {
    "metric names should not contain abbreviated units": [
        f"nv_inference_{what}_duration_us"
        for what in ("request", "queue", "compute_input", "compute_infer", "compute_output")
    ],
    'non-histogram and non-summary metrics should not have "_count" suffix': ["nv_inference_pending_request_count"],
    'counter metrics should have "_total" suffix': ["nv_energy_consumption"],
}
"""Names are Triton's, which its dashboards and clients ask for."""
_EXACT = {
    "BitserveLatencyP99High", "BitserveQueueSaturated", "BitserveRequestsRefused", "BitserveDeadlinesMissed",
    "BitserveInstanceFailed", "BitserveNoReadyReplica", "BitserveRestarting", "BitserveModelUnavailable",
    "BitserveGpuLost", "BitserveGpuMissing",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with under_load(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def faults(site: Site) -> Site:
    """After all that can go wrong has."""
    place(site.folder / "cpu", "late", linear(12))
    _fail_batches(site)
    _fill_queue(site)
    _lose_gpu(site)
    _restart_engine(site)
    _queue_builds(site)
    return site


def _fail_batches(site: Site) -> None:
    assert {ask(site.servers["cpu"], "fours", width=7) for _ in range(3)} == {400}


def _fill_queue(site: Site) -> None:
    held, query = site.servers["held"], site.prometheus.query
    slow_s = time.monotonic() + 2 * _SLOW_S
    with ThreadPoolExecutor(HOLD_REQUESTS) as pool:
        waiting = [pool.submit(ask, held, "held", rows) for rows in (6, 6, 5)]
        until(lambda: query('bitserve_queue_rows{model="held"} == 17'), "17 of 20 rows wait")
        assert ask(held, "held", rows=4) == 503
        assert ask(held, "held", timeout_us=1000) == 503
        until(lambda: site.prometheus.fired("BitserveQueueSaturated"), "it is seen")
        until(lambda: time.monotonic() > slow_s, "those that wait are slow, too")
        waiting += [pool.submit(ask, held, "held") for _ in range(HOLD_REQUESTS - len(waiting))]
        assert {one.result() for one in waiting} == {200}


def _lose_gpu(site: Site) -> None:
    site.lose_gpu()
    assert {ask(site.servers["lost"], "sums", width=4) for _ in range(3)} == {503}


def _restart_engine(site: Site) -> None:
    for times in range(1, 4):
        until(lambda: _kill_engine(site), "an engine process is killed")
        changes = f'changes(process_start_time_seconds{{pod="fronts"}}[10m]) >= {times}'
        until(lambda changes=changes: site.prometheus.query(changes), f"start {times} is seen")  # type: ignore[misc]


def _kill_engine(site: Site) -> bool:
    with contextlib.suppress(ValueError):  # none, while it is started
        engine_of(site.servers["fronts"]).kill()
        return True
    return False


def _queue_builds(site: Site) -> None:
    for width in (3, 5, 7):
        assert send(site.servers["cpu"], f"wide{width}", linear(width).SerializeToString()).status_code == 202


def _exported(site: Site) -> set[str]:
    """Names of samples on the pages of servers on a CPU and on a GPU."""
    pages = [httpx.get(f"{site.servers[pod].url}/metrics", verify=False).text for pod in ("cpu", "gpu")]
    return {name for page in pages for name in re.findall(r"^[a-zA-Z_]\w*", page, re.MULTILINE)}


def test_every_metric_that_is_asked_for_exists(site: Site) -> None:
    known = _exported(site) | set(promql.recorded()) | set(OF_PROMETHEUS)
    asked = [*promql.panel_queries(), *promql.rule_queries(), *promql.scaling_queries()]
    asked += [Query(one.where, one.selector) for one in promql.variables()]
    assert len(asked) > 100
    unknown = {query.where: names for query in asked if (names := promql.metric_names(query.expr) - known)}
    assert not unknown
    assert promql.metric_names("rate(bitserve_raedy[5m]) > 1") - known == {"bitserve_raedy"}


def test_promtool_finds_nothing_in_the_page_but_what_is_known(site: Site) -> None:
    page = httpx.get(f"{site.servers['gpu'].url}/metrics", verify=False).text
    found = promtool("check", "metrics", stdin=page)
    said = {tuple(line.split(" ", 1)) for line in (found.stdout + found.stderr).splitlines() if line}
    assert said == {(name, lint) for lint, names in KNOWN_LINTS.items() for name in names}
    planted = promtool(
        "check", "metrics", stdin=page + "# HELP bad_total A gauge.\n# TYPE bad_total gauge\nbad_total 1\n"
    )
    assert "bad_total non-counter metrics" in planted.stdout + planted.stderr


@pytest.mark.parametrize("query", promql.panel_queries(), ids=lambda query: query.where)
def test_a_panel_shows_something(site: Site, query: Query) -> None:
    until(lambda: site.prometheus.numbers(query.expr), query.expr, timeout_s=_PATIENCE_S, every_s=0.1)


@pytest.mark.parametrize("variable", promql.variables(), ids=lambda variable: variable.where)
def test_a_variable_has_values(site: Site, variable: Variable) -> None:
    found = site.prometheus.query(f"count by ({variable.label}) ({variable.selector})")
    assert found
    assert all(sample.labels.get(variable.label) for sample in found)


@pytest.mark.parametrize("name", promql.recorded())
def test_a_recorded_series_is_there(site: Site, name: str) -> None:
    until(lambda: site.prometheus.numbers(name), name, timeout_s=_PATIENCE_S, every_s=0.1)


@pytest.mark.parametrize("alert", promql.alerts())
def test_an_alert_has_a_value_to_compare(site: Site, alert: str) -> None:
    expr = promql.without_threshold(promql.alerts()[alert]["expr"])
    until(lambda: site.prometheus.numbers(expr), expr, timeout_s=_PATIENCE_S, every_s=0.1)


def test_the_adapter_has_a_value_for_each_pod(site: Site) -> None:
    queries = promql.adapter_queries("prod", ["cpu", "gpu", "held"])
    assert set(queries) == {"bitserve_avg_queue_us", "bitserve_queue_seconds_p99"}
    for name, expr in queries.items():
        found = {sample.labels["pod"]: sample.value for sample in site.prometheus.numbers(expr)}
        assert set(found) == {"cpu", "gpu", "held"}, name
        assert found["cpu"] > 0, name
    assert 0 < found["cpu"] < 10  # of the last: seconds


def test_keda_is_given_one_number(site: Site) -> None:
    (sample,) = site.prometheus.query(promql.keda_query())
    assert sample.labels == {}
    assert 0 < sample.value < 100


def test_an_idle_pod_needs_no_replica(site: Site) -> None:
    found = {name: site.prometheus.query(expr) for name, expr in promql.adapter_queries("lost", ["lost"]).items()}
    assert {name: [sample.value for sample in samples] for name, samples in found.items()} == {
        "bitserve_avg_queue_us": [0.0], "bitserve_queue_seconds_p99": [0.0],
    }  # fmt: skip


def test_a_name_that_is_misspelt_finds_nothing(site: Site) -> None:
    assert site.prometheus.numbers("sum(bitserve_ready)")
    assert not site.prometheus.numbers("sum(bitserve_raedy)")


def test_no_alert_is_left_out() -> None:
    assert set(promql.alerts()) == set(EXPECTED)


@pytest.mark.parametrize("alert", EXPECTED)
def test_an_alert_fires(faults: Site, alert: str) -> None:
    label, values = EXPECTED[alert]
    fired = until(
        lambda: values <= (found := {labels[label] for labels in faults.prometheus.fired(alert)}) and found,
        f"{alert} for {values}",
        timeout_s=_PATIENCE_S,
        every_s=0.1,
    )
    assert alert not in _EXACT or fired == values
