"""Metrics that operators are woken by: readiness, a lost GPU, limits of the queue, restarts, and how builds ended."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import Snapshot
from app.serving.endpoint import Endpoint
from app.serving.limits import ModelOptions, QueueOptions
from app.serving.registry import ModelState, Version
from app.serving.stats import Histogram
from tests.support.fakes import Bench, HeldSession
from tests.support.fronts import engine_of
from tests.support.onnx_models import linear, place
from tests.support.servers import ON_GPU, running, until


def samples(page: str) -> dict[tuple[str, ...], float]:
    """Values by name and the values of all labels, which are sorted by their names."""
    families = text_string_to_metric_families(page)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_readiness_is_that_of_the_probe() -> None:
    bench = Bench()
    found = samples(Snapshot(bench.gateway).page().decode())
    assert (found[("bitserve_ready",)], found[("bitserve_gpu_lost",)]) == (1, 0)
    bench.gateway.stop()
    found = samples(Snapshot(bench.gateway).page().decode())
    assert (found[("bitserve_ready",)], found[("bitserve_gpu_lost",)]) == (0, 0)


def test_a_lost_gpu_is_told_and_takes_readiness() -> None:
    bench = Bench()
    bench.gateway.lose("it has fallen off the bus")
    found = samples(Snapshot(bench.gateway).page().decode())
    assert (found[("bitserve_ready",)], found[("bitserve_gpu_lost",)]) == (0, 1)


def test_limits_are_those_of_the_engine_that_serves() -> None:
    """While another that it replaced still drains, what both hold and run is added up."""
    bench = Bench()
    old, registry = bench.endpoint, bench.gateway.registry
    bench.send()
    session = HeldSession(slots=3)
    session.memory_bytes = 1000
    options = ModelOptions(queue=QueueOptions(max_rows=77))
    new = Endpoint("m", 1, old.inputs, old.outputs, session, options, bench.device, old.stats)
    registry.set(Version("m", 1, ModelState.READY, endpoint=new))
    bench.gateway.retire(old, lambda: None)
    found = samples(Snapshot(bench.gateway).page().decode())
    told = {
        name: found[(f"bitserve_{name}", "m", "1")] for name in ("queue_max_rows", "instances", "model_memory_bytes")
    }
    assert told == {"queue_max_rows": 77, "instances": 3, "model_memory_bytes": 1000}
    assert found[("bitserve_instances_busy", "m", "1")] == old.running == 1


def test_builds_are_counted_by_how_they_ended() -> None:
    bounds_ns = (10**9, 10**10)
    ended = {outcome: Histogram(bounds_ns) for outcome in ("succeeded", "failed")}
    ended["failed"].observe(2 * 10**9)
    builds = SimpleNamespace(waiting=3, running=1, ended_ns=ended)
    found = samples(Snapshot(Bench().gateway, builds).page().decode())
    assert (found[("bitserve_builds_waiting",)], found[("bitserve_builds_running",)]) == (3, 1)
    name = "bitserve_build_duration_seconds"
    assert [found[(f"{name}_bucket", le, "failed")] for le in ("1", "10", "+Inf")] == [0, 1, 1]
    assert (found[(f"{name}_count", "failed")], found[(f"{name}_sum", "failed")]) == (1, 2)
    assert found[(f"{name}_count", "succeeded")] == 0


def test_the_start_of_the_process_is_that_of_the_one_with_the_engines(tmp_path: Path) -> None:
    with running(tmp_path, "--front-ends", "2") as server:
        engine = engine_of(server)

        def started_s() -> float:
            answer = httpx.get(f"{server.url}/metrics", verify=False)
            return samples(answer.text)[("process_start_time_seconds",)] if answer.status_code == 200 else 0.0

        before_s = started_s()
        assert before_s == pytest.approx(engine.create_time(), abs=1)
        engine.kill()
        after_s = until(lambda: (now_s := started_s()) > before_s and now_s, "another process answers")
        assert after_s <= time.time() + 1


def test_a_server_tells_the_sizes_of_a_model(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear(), config="instances = 3\n")
    with running(tmp_path, "--max-queue-rows", "50") as server:
        server.wait_ready("linear")
        found = samples(httpx.get(f"{server.url}/metrics", verify=False).text)
        assert found[("bitserve_queue_max_rows", "linear", "1")] == 50
        batches = 2 if ON_GPU else 1  # of an instance at once: on a GPU one is copied while another is computed
        assert found[("bitserve_instances", "linear", "1")] == 3 * batches
        assert found[("bitserve_model_memory_bytes", "linear", "1")] > (0 if ON_GPU else 4 * 16 * 4)
        assert found[("process_resident_memory_bytes",)] > 10**7
