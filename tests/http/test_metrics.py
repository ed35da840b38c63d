"""The metrics page: Triton's names bare, exact counters, seconds histograms, and the series that dashboards ask for."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import Snapshot
from app.serving.endpoint import Endpoint
from app.serving.registry import ModelState, Version
from tests.support import onnx_models
from tests.support.fakes import Bench, HeldSession
from tests.support.servers import ADMIN, Server, running, until

MODEL_NAMES = {
    "nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count",
    "nv_inference_request_duration_us", "nv_inference_queue_duration_us", "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us", "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count", "bitserve_queue_rows", "bitserve_requests_in_flight",
}  # fmt: skip
OUTCOMES = {"success", "rejected", "expired", "cancelled", "failed"}
BUCKETS = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, float("inf"),
]  # fmt: skip


class Page:
    """A scrape, by sample."""

    def __init__(self, server: Server) -> None:
        answer = httpx.get(f"{server.url}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.text = answer.text
        self.families = list(text_string_to_metric_families(answer.text))
        names = set(re.findall(r"^\w+", self.text, re.MULTILINE))  # the parser adds `_total` to a bare counter
        self.samples = [
            sample if sample.name in names else sample._replace(name=sample.name.removesuffix("_total"))
            for family in self.families
            for sample in family.samples
        ]
        assert {sample.name for sample in self.samples} == names

    def all(self, name: str, **labels: str) -> list[Any]:
        return [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def one(self, name: str, **labels: str) -> float:
        found = self.all(name, **labels)
        assert len(found) == 1, (name, labels, found)
        return float(found[0].value)

    def failures(self, model: str) -> dict[str, float]:
        return {s.labels["reason"]: s.value for s in self.all("nv_inference_request_failure", model=model)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    onnx_models.place(repository, "linear", onnx_models.linear())
    onnx_models.place(repository, "fresh", onnx_models.linear())
    onnx_models.place(repository, "broken", b"not an ONNX model")
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    float32 = TensorProto.FLOAT
    fours = {"shape": np.array([0, 4, -1], np.int64)}
    graph = onnx_models.build([reshape], {"x": (float32, ["N", "T"])}, {"y": (float32, ["N", 4, "U"])}, fours)
    onnx_models.place(repository, "fours", graph)  # fails on rows whose length is no multiple of 4
    with running(repository, "--cache", str(tmp_path_factory.getbasetemp() / "plans")) as server:
        server.wait_ready("linear", "fresh", "fours")
        until(lambda: server.state("broken") == "UNAVAILABLE", "broken is known to be")
        yield server


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that launches a model's first batch when 4 requests wait; each model is for one test."""
    repository = tmp_path_factory.mktemp("held")
    limits = "[queue]\nmax_queue_size = 3\n"
    for name in ("three", "full", "left", "late"):
        onnx_models.place(repository, name, onnx_models.linear(), config=limits if name == "full" else "")
    plans = str(tmp_path_factory.getbasetemp() / "plans")
    with running(repository, "--delay-scheduler", "4", "--cache", plans) as server:
        server.wait_ready()
        yield server


def _infer(server: Server, model: str, rows: int = 1, width: int = 16, **keys: Any) -> httpx.Response:
    return server.infer(model, {"x": ("FP32", np.ones((rows, width)))}, **keys)


def test_names_are_tritons_own(server: Server) -> None:
    page = Page(server)
    names = {sample.name for sample in page.samples}
    assert names >= MODEL_NAMES | {"nv_inference_request_failure"}
    assert not [name for name in names if name.startswith("nv_") and name.endswith(("_total", "_created"))]
    for name in MODEL_NAMES:
        assert {tuple(s.labels) for s in page.all(name)} == {("model", "version")}
        assert {s.labels["model"] for s in page.all(name)} == {"linear", "fresh", "fours"}
    failures = page.all("nv_inference_request_failure", model="fresh", version="1")
    assert {s.labels["reason"] for s in failures} == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert all(family.documentation for family in page.families)
    assert len({family.name for family in page.families}) == len(page.families)


def test_a_fresh_model_counts_nothing_but_has_its_series(server: Server) -> None:
    page = Page(server)
    for name in MODEL_NAMES:
        assert page.one(name, model="fresh") == 0
    assert set(page.failures("fresh").values()) == {0.0}
    for outcome in OUTCOMES:
        assert page.one("bitserve_request_duration_seconds_count", model="fresh", outcome=outcome) == 0


def test_counters_are_exact(server: Server) -> None:
    before = Page(server)
    for rows in (1, 2, 3):
        assert _infer(server, "linear", rows).status_code == 200
    assert _infer(server, "linear", rows=33).status_code == 400
    assert _infer(server, "linear", width=15).status_code == 400
    page = Page(server)

    def grown(name: str, **labels: str) -> float:
        old = before.all(name, model="linear", **labels)
        return page.one(name, model="linear", **labels) - (old[0].value if old else 0)

    assert grown("nv_inference_request_success") == 3
    assert grown("nv_inference_count") == 6
    assert grown("nv_inference_exec_count") == 3
    assert page.one("nv_inference_pending_request_count", model="linear") == 0
    assert page.one("bitserve_requests_in_flight", model="linear") == 0
    assert grown("nv_inference_request_failure", reason="OTHER") == 2
    assert grown("bitserve_request_duration_seconds_count", outcome="success") == 3
    assert grown("bitserve_request_duration_seconds_count", outcome="rejected") == 2
    assert grown("bitserve_queue_duration_seconds_count", outcome="success") == 3
    for phase in ("input", "infer", "output"):
        assert grown("bitserve_compute_duration_seconds_count", outcome="success", phase=phase) == 3
    assert grown("bitserve_batch_rows_count") == 3
    assert grown("bitserve_batch_rows_sum") == 6
    for bound, rows in (("1", 1), ("2", 2), ("4", 3), ("1024", 3), ("+Inf", 3)):
        assert grown("bitserve_batch_rows_bucket", le=bound) == rows
    flushes = page.all("bitserve_batch_flushes_total", model="linear")
    assert sum(s.value for s in flushes) == page.one("nv_inference_exec_count", model="linear")
    assert all(s.labels["reason"] for s in flushes)


def test_histograms_are_in_seconds_from_100_us_and_agree_with_tritons_sums(server: Server) -> None:
    _infer(server, "linear")
    page = Page(server)
    pairs = [
        ("bitserve_request_duration_seconds", {}, "nv_inference_request_duration_us"),
        ("bitserve_queue_duration_seconds", {}, "nv_inference_queue_duration_us"),
        *(
            ("bitserve_compute_duration_seconds", {"phase": phase}, f"nv_inference_compute_{phase}_duration_us")
            for phase in ("input", "infer", "output")
        ),
    ]
    for name, labels, sums in pairs:
        where = {"model": "linear", "version": "1", "outcome": "success", **labels}
        buckets = page.all(f"{name}_bucket", **where)
        assert [float(s.labels["le"]) for s in buckets] == BUCKETS
        counts = [s.value for s in buckets]
        assert counts == sorted(counts)
        assert counts[-1] == page.one(f"{name}_count", **where) > 0
        assert page.one(f"{name}_sum", **where) == pytest.approx(page.one(sums, model="linear") / 1e6, abs=2e-6)
    for name in ("bitserve_request_duration_seconds", "bitserve_queue_duration_seconds"):
        assert {s.labels["outcome"] for s in page.all(f"{name}_count", model="linear")} == OUTCOMES
    computed = page.all("bitserve_compute_duration_seconds_count", model="linear")
    assert {s.labels["outcome"] for s in computed} == {"success", "failed"}


def test_a_failing_batch_counts_as_backend(server: Server) -> None:
    assert _infer(server, "fours", width=8).status_code == 200
    assert _infer(server, "fours", width=7).status_code == 400
    page = Page(server)
    assert page.failures("fours") == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 1, "OTHER": 0}
    assert page.one("bitserve_request_duration_seconds_count", model="fours", outcome="failed") == 1
    assert page.one("bitserve_compute_duration_seconds_count", model="fours", outcome="failed", phase="infer") == 1
    assert page.one("nv_inference_exec_count", model="fours") == 1


def test_model_states(server: Server) -> None:
    page = Page(server)
    for model, right in (("linear", "READY"), ("broken", "UNAVAILABLE")):
        states = {s.labels["state"]: s.value for s in page.all("bitserve_model_state", model=model, version="1")}
        assert states == {state: float(state == right) for state in ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")}


def test_what_waits_is_seen_and_runs_as_one_batch(held: Server) -> None:
    threads = [threading.Thread(target=_infer, args=(held, "three", 2)) for _ in range(4)]
    for number, thread in enumerate(threads[:3], start=1):
        thread.start()
        until(
            lambda number=number: Page(held).one("nv_inference_pending_request_count", model="three") == number,
            f"{number} requests wait",
        )
    page = Page(held)
    assert page.one("bitserve_queue_rows", model="three") == 6
    assert page.one("bitserve_requests_in_flight", model="three") == 3
    threads[3].start()
    for thread in threads:
        thread.join()
    page = Page(held)
    for name, value in (
        ("nv_inference_request_success", 4), ("nv_inference_count", 8), ("nv_inference_exec_count", 1),
        ("nv_inference_pending_request_count", 0), ("bitserve_queue_rows", 0), ("bitserve_requests_in_flight", 0),
    ):  # fmt: skip
        assert page.one(name, model="three") == value
    assert page.one("bitserve_batch_rows_bucket", model="three", le="8") == 1
    assert page.one("bitserve_batch_rows_bucket", model="three", le="4") == 0


def test_a_full_queue_an_expired_request_and_a_gone_client(held: Server) -> None:
    waiting = [_send(held, "full", number) for number in (1, 2, 3)]
    refused = _infer(held, "full")
    assert (refused.status_code, refused.json()) == (503, {"error": "Exceeds maximum queue size"})
    expired = _infer(held, "late", parameters={"timeout": 20_000})
    assert (expired.status_code, expired.json()) == (503, {"error": "Request timeout expired"})
    _send(held, "left", 1).close()
    until(lambda: Page(held).failures("left")["CANCELED"] == 1, "the gone client's request is dropped")
    page = Page(held)
    for model, reason, outcome in (
        ("full", "REJECTED", "rejected"), ("late", "REJECTED", "expired"), ("left", "CANCELED", "cancelled"),
    ):  # fmt: skip
        assert page.failures(model) == {**dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0.0), reason: 1.0}
        counts = {
            s.labels["outcome"]: s.value for s in page.all("bitserve_request_duration_seconds_count", model=model)
        }
        assert counts == {**dict.fromkeys(OUTCOMES, 0.0), outcome: 1.0}
        assert page.one("nv_inference_exec_count", model=model) == 0
    assert page.one("bitserve_request_duration_seconds_sum", model="late", outcome="expired") >= 0.02
    assert page.one("nv_inference_pending_request_count", model="left") == 0
    for connection in waiting:
        connection.close()
    until(lambda: Page(held).failures("full")["CANCELED"] == 3, "the three are dropped")


def _send(server: Server, model: str, waiting: int) -> socket.socket:
    """Send a request and wait until `waiting` of them wait; closing the socket is leaving."""
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,16],"data":[' + b",".join([b"1"] * 16) + b"]}]}"
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + body)
    until(lambda: Page(server).one("nv_inference_pending_request_count", model=model) == waiting, "it waits")
    return connection


def test_the_series_of_known_dashboards_are_there(server: Server) -> None:
    page = Page(server)
    queries = [
        "sum(nv_inference_request_success) by (pod)",
        "sum(nv_inference_request_failure) by (pod)",
        "avg(rate(nv_inference_queue_duration_us[30s])/(1+rate(nv_inference_request_success[30s])))",
        "rate(nv_inference_compute_infer_duration_us[30s]) by (model)",
        "count(nv_inference_count)",
        "rate(nv_inference_queue_duration_us[1m])/clamp_min(rate(nv_inference_compute_infer_duration_us[1m]),1)",
        "nv_inference_pending_request_count",
        "nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes",
        "histogram_quantile(0.99, rate(bitserve_request_duration_seconds_bucket[1m]))",
    ]  # fmt: skip
    for query in queries:
        for name in re.findall(r"(?:nv|bitserve)_\w+", query):
            assert page.all(name), name
    assert 0 <= page.one("nv_cpu_utilization") <= 1
    assert 0 < page.one("nv_cpu_memory_used_bytes") < page.one("nv_cpu_memory_total_bytes")


def test_scraping_while_requests_run_never_fails(server: Server) -> None:
    stop = threading.Event()

    def traffic() -> None:
        with httpx.Client(base_url=server.url) as client:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
            while not stop.is_set():
                assert client.post("/v2/models/linear/infer", json=body).status_code == 200

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            page = Page(server)
            done = page.one("nv_inference_request_success", model="linear")
            assert page.one("bitserve_request_duration_seconds_count", model="linear", outcome="success") == done
            assert page.one("nv_inference_count", model="linear") >= done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_counters_go_on_when_a_version_is_loaded_anew(server: Server) -> None:
    before = Page(server).one("nv_inference_request_success", model="linear")
    assert _infer(server, "linear").status_code == 200
    assert httpx.post(f"{server.url}/v2/repository/models/linear/load", headers=ADMIN, timeout=60).status_code == 200
    assert _infer(server, "linear").status_code == 200
    assert Page(server).one("nv_inference_request_success", model="linear") == before + 2
    (statistics,) = httpx.get(f"{server.url}/v2/models/linear/stats").json()["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == before + 2


def test_a_replaced_engine_that_still_drains_is_counted_with_its_successor() -> None:
    bench = Bench()
    waits = bench.send()
    old, registry = bench.endpoint, bench.gateway.registry
    new = Endpoint("m", 1, old.inputs, old.outputs, HeldSession(), old.options, bench.device, old.stats)
    registry.set(Version("m", 1, ModelState.READY, endpoint=new))
    bench.gateway.retire(old, lambda: None)
    page = Snapshot(bench.gateway).page().decode()
    assert page.count("bitserve_requests_in_flight{") == 1
    assert 'bitserve_requests_in_flight{model="m",version="1"} 1.0' in page
    bench.finish()
    assert waits.answered
    page = Snapshot(bench.gateway).page().decode()
    assert 'bitserve_requests_in_flight{model="m",version="1"} 0.0' in page
    assert 'nv_inference_request_success{model="m",version="1"} 1.0' in page


def test_unloading_takes_a_models_series_away(server: Server) -> None:
    assert httpx.post(f"{server.url}/v2/repository/models/fresh/unload", headers=ADMIN).status_code == 200
    until(lambda: server.state("fresh") == "UNAVAILABLE", "fresh is unloaded")
    page = Page(server)
    assert not page.all("nv_inference_request_success", model="fresh")
    assert page.one("bitserve_model_state", model="fresh", state="UNAVAILABLE") == 1


def test_without_metrics_the_page_is_not_found(tmp_path: Path) -> None:
    with running(tmp_path, "--no-metrics") as server:
        answer = httpx.get(f"{server.url}/metrics")
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
        assert "/metrics" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]
