"""The metrics page: serving's flat counters in Prometheus text, Triton's bare names beside seconds histograms.

The numbers are copied on the event loop, where they change; the text is written by prometheus_client in a thread,
since it takes some 3 ms a model, which is too long for the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import psutil
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from app.serving.endpoint import Endpoint
from app.serving.gateway import Gateway
from app.serving.registry import ModelState, Registry
from app.serving.stats import BUCKETS_S, FAILURE_REASONS, PHASES, ROW_BUCKETS, Histogram, Stats
from app.serving.ticket import Outcome

__all__ = ["CONTENT_TYPE", "BuildsSeen", "Snapshot"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_S_BOUNDS = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")
_ROW_BOUNDS = (*(str(bound) for bound in ROW_BUCKETS), "+Inf")
Labels = dict[str, str]
_PROCESS = ProcessCollector(registry=None)
"""Of the process that runs the engines: memory, CPU, files, and when it started, by which its restarts are counted."""


class _Family(NamedTuple):
    """One metric family; a sample is a suffix of its name, labels and a value."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, Labels, float]]


class BuildsSeen(Protocol):
    """What is told of builds; `ended_ns` has the durations of those that ended, by how they did."""

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def ended_ns(self) -> Mapping[str, Histogram]: ...


class Snapshot(Collector):
    """The numbers of one moment. Make it on the event loop; `page` may run in a thread."""

    def __init__(self, gateway: Gateway, builds: BuildsSeen | None = None) -> None:
        self._families = [*_families(gateway), *(_builds(builds) if builds is not None else ())]

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, labels, value)
            yield metric
        yield from _PROCESS.collect()

    def page(self) -> bytes:
        """The text exposition."""
        return generate_latest(self)


class _Served(NamedTuple):
    """One version: its counters, and its endpoints (two while a replaced engine still drains)."""

    labels: Labels
    stats: Stats
    endpoints: list[Endpoint]


class _Flat(NamedTuple):
    """A family with one number per version."""

    name: str
    kind: str
    help: str
    value: Callable[[_Served], int]


def _compute_us(phase: int) -> Callable[[_Served], int]:
    return lambda served: served.stats.compute_ns[Outcome.SUCCESS][phase].total // 1000


def _sum(value: Callable[[Endpoint], int]) -> Callable[[_Served], int]:
    return lambda served: sum(value(endpoint) for endpoint in served.endpoints)


def _current(value: Callable[[Endpoint], int]) -> Callable[[_Served], int]:
    return lambda served: value(served.endpoints[0])  # those that drain come behind it


_FLAT = (
    # Triton's names exactly. As counters prometheus_client would add `_total`, and every dashboard would be empty.
    _Flat("nv_inference_request_success", "unknown", "Requests answered with outputs.",
          lambda s: s.stats.request_ns[Outcome.SUCCESS].count),
    _Flat("nv_inference_count", "unknown", "Rows inferred.", lambda s: s.stats.inferred_rows),
    _Flat("nv_inference_exec_count", "unknown", "Batches run.", lambda s: s.stats.executions),
    _Flat("nv_inference_request_duration_us", "unknown", "Cumulative request time.",
          lambda s: s.stats.request_ns[Outcome.SUCCESS].total // 1000),
    _Flat("nv_inference_queue_duration_us", "unknown", "Cumulative time in the queue.",
          lambda s: s.stats.queue_ns[Outcome.SUCCESS].total // 1000),
    _Flat("nv_inference_compute_input_duration_us", "unknown", "Cumulative time copying rows in.", _compute_us(0)),
    _Flat("nv_inference_compute_infer_duration_us", "unknown", "Cumulative time in the engine.", _compute_us(1)),
    _Flat("nv_inference_compute_output_duration_us", "unknown", "Cumulative time handing rows out.", _compute_us(2)),
    _Flat("nv_inference_pending_request_count", "gauge", "Requests that wait for a batch.",
          _sum(lambda e: e.queue.requests)),
    _Flat("bitserve_queue_rows", "gauge", "Rows that wait for a batch.", _sum(lambda e: e.queue.rows)),
    _Flat("bitserve_queue_max_rows", "gauge", "Rows that may wait for a batch; 0 = no limit.",
          _current(lambda e: e.options.queue.max_rows)),
    _Flat("bitserve_requests_in_flight", "gauge", "Requests accepted and not answered.", _sum(lambda e: e.in_flight)),
    _Flat("bitserve_instances", "gauge", "Batches that may run at once.", _current(lambda e: e.instances)),
    _Flat("bitserve_instances_busy", "gauge", "Batches that run now.", _sum(lambda e: e.running)),
    _Flat("bitserve_model_memory_bytes", "gauge", "Weights that the engine holds, as far as known.",
          _sum(lambda e: e.memory_bytes)),
)  # fmt: skip


def _served(gateway: Gateway) -> list[_Served]:
    versions: dict[tuple[str, int], _Served] = {}
    for endpoint in gateway.endpoints():
        at = (endpoint.model, endpoint.version)
        if at not in versions:
            versions[at] = _Served(_labels(*at), gateway.stats(endpoint), [])
        versions[at].endpoints.append(endpoint)
    return list(versions.values())


def _families(gateway: Gateway) -> Iterator[_Family]:
    served = _served(gateway)
    for flat in _FLAT:
        samples = [("", one.labels, float(flat.value(one))) for one in served]
        yield _Family(flat.name, flat.kind, flat.help, samples)
    yield _Family(
        "nv_inference_request_failure",
        "unknown",
        "Requests that ended without outputs, by reason.",
        [("", {**s.labels, "reason": why}, float(s.stats.failures[why])) for s in served for why in FAILURE_REASONS],
    )
    yield _Family(
        "bitserve_batch_flushes",
        "counter",
        "Batches by the reason that they left the queue.",
        [("_total", {**s.labels, "reason": w}, float(n)) for s in served for w, n in sorted(s.stats.flushes.items())],
    )
    yield from _histograms(served)
    yield _states(gateway.registry)
    yield from _health(gateway)
    yield from _machine()


def _histograms(served: Iterable[_Served]) -> Iterator[_Family]:
    request = _Family("bitserve_request_duration_seconds", "histogram", "Whole request, body read to answer.", [])
    queue = _Family("bitserve_queue_duration_seconds", "histogram", "Time in the queue.", [])
    compute = _Family("bitserve_compute_duration_seconds", "histogram", "Time of the request's batch, by phase.", [])
    rows = _Family("bitserve_batch_rows", "histogram", "Rows of a batch.", [])
    for labels, stats, _ in served:
        for family, by_outcome in ((request, stats.request_ns), (queue, stats.queue_ns)):
            for outcome, histogram in by_outcome.items():
                _add(family, {**labels, "outcome": outcome.value}, histogram, _S_BOUNDS, 1e9)
        for outcome, phases in stats.compute_ns.items():
            for phase, histogram in zip(PHASES, phases, strict=True):
                _add(compute, {**labels, "outcome": outcome.value, "phase": phase}, histogram, _S_BOUNDS, 1e9)
        _add(rows, labels, stats.batch_rows, _ROW_BOUNDS, 1)
    yield from (request, queue, compute, rows)


def _add(family: _Family, labels: Labels, histogram: Histogram, bounds: Iterable[str], unit: float) -> None:
    """Cumulative counts by upper bound, as the exposition format wants them; `unit` turns the sum into the name's."""
    cumulative = 0
    for bound, count in zip(bounds, histogram.counts, strict=True):
        cumulative += count
        family.samples.append(("_bucket", {**labels, "le": bound}, float(cumulative)))
    family.samples.append(("_count", labels, float(cumulative)))
    family.samples.append(("_sum", labels, histogram.total / unit))


def _states(registry: Registry) -> _Family:
    samples = [
        ("", {**_labels(version.model, version.number), "state": state.value}, float(version.state is state))
        for version in registry.all()
        for state in ModelState
    ]
    return _Family("bitserve_model_state", "gauge", "1 for the state a version is in, 0 for the others.", samples)


def _health(gateway: Gateway) -> Iterator[_Family]:
    """What the probes are told, and why: a scrape tells it also where nobody probes."""
    is_lost = bool(gateway.lost)
    is_ready = not gateway.stopping and not is_lost
    for name, text, value in (
        ("bitserve_ready", "1 while traffic is accepted, as /v2/health/ready tells.", is_ready),
        ("bitserve_gpu_lost", "1 once a GPU was lost; nothing brings it back in this process.", is_lost),
    ):
        yield _Family(name, "gauge", text, [("", {}, float(value))])


def _builds(builds: BuildsSeen) -> Iterator[_Family]:
    for name, text, value in (
        ("bitserve_builds_waiting", "Builds that wait; with a store, of all servers.", builds.waiting),
        ("bitserve_builds_running", "Builds that run; with a store, of all servers.", builds.running),
    ):
        yield _Family(name, "gauge", text, [("", {}, float(value))])
    durations = _Family("bitserve_build_duration_seconds", "histogram", "Builds from their start to their end.", [])
    for outcome, histogram in builds.ended_ns.items():
        bounds = (*(f"{bound / 1e9:g}" for bound in histogram.bounds), "+Inf")
        _add(durations, {"outcome": outcome}, histogram, bounds, 1e9)
    yield durations


def _machine() -> Iterator[_Family]:
    """Triton's gauges of the machine; the utilization is that since the last scrape."""
    memory = psutil.virtual_memory()
    for name, text, value in (
        ("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0].", psutil.cpu_percent() / 100),
        ("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes.", memory.total),
        ("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes.", memory.used),
    ):
        yield _Family(name, "gauge", text, [("", {}, float(value))])


def _labels(model: str, version: int) -> Labels:
    return {"model": model, "version": str(version)}
