"""The metrics page: a collector over serving's flat counters, Triton's bare names beside seconds histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.serving.endpoint import Endpoint
from app.serving.gateway import Gateway
from app.serving.registry import ModelState
from app.serving.stats import BUCKETS_S, FAILURE_REASONS, PHASES, ROW_BUCKETS, Histogram
from app.serving.ticket import Outcome

__all__ = ["CONTENT_TYPE", "metrics_page"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model", "version")
_S_BOUNDS = tuple(f"{bound:g}" for bound in BUCKETS_S)


def metrics_page(gateway: Gateway) -> Callable[[], bytes]:
    """A function that renders the page now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ServingCollector(gateway))
    return lambda: generate_latest(registry)


class _ServingCollector(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        endpoints = self._gateway.registry.endpoints()
        yield from _triton(endpoints)
        yield from _histograms(endpoints)
        yield from self._gauges(endpoints)

    def _gauges(self, endpoints: list[Endpoint]) -> Iterator[Metric]:
        rows = GaugeMetricFamily("bitserve_queue_rows", "Rows that wait for a batch.", labels=_LABELS)
        flight = GaugeMetricFamily("bitserve_requests_in_flight", "Requests accepted and not answered.", labels=_LABELS)
        flushes = CounterMetricFamily(
            "bitserve_batch_flushes", "Batches by the reason that they left the queue.", labels=(*_LABELS, "reason")
        )
        for endpoint in endpoints:
            rows.add_metric(_labels(endpoint), endpoint.queue.rows)
            flight.add_metric(_labels(endpoint), endpoint.in_flight)
            for reason, count in sorted(endpoint.stats.flushes.items()):
                flushes.add_metric((*_labels(endpoint), reason), count)
        state = GaugeMetricFamily(
            "bitserve_model_state", "1 for the state a version is in, 0 for the others.", labels=(*_LABELS, "state")
        )
        for version in self._gateway.registry.all():
            for known in ModelState:
                labels = (version.model, str(version.number), known.value)
                state.add_metric(labels, int(version.state is known))
        yield from (rows, flight, flushes, state)


def _labels(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.model, str(endpoint.version)


def _triton(endpoints: Iterable[Endpoint]) -> Iterator[Metric]:
    """Triton's names exactly: prometheus_client would add `_total` to a counter, and every dashboard would be empty."""
    bare = {
        "nv_inference_request_success": "Requests answered with outputs.",
        "nv_inference_request_failure": "Requests that ended without outputs, by reason.",
        "nv_inference_count": "Rows inferred.",
        "nv_inference_exec_count": "Batches run.",
        "nv_inference_request_duration_us": "Cumulative request time.",
        "nv_inference_queue_duration_us": "Cumulative time in the queue.",
        "nv_inference_compute_input_duration_us": "Cumulative time copying rows in.",
        "nv_inference_compute_infer_duration_us": "Cumulative time in the engine.",
        "nv_inference_compute_output_duration_us": "Cumulative time handing rows out.",
        "nv_inference_pending_request_count": "Requests that wait for a batch.",
    }
    families = {name: Metric(name, text, "unknown") for name, text in bare.items()}
    for endpoint in endpoints:
        labels = dict(zip(_LABELS, _labels(endpoint), strict=True))
        for name, value in _triton_values(endpoint).items():
            families[name].add_sample(name, labels, value)
        for reason in FAILURE_REASONS:
            name = "nv_inference_request_failure"
            families[name].add_sample(name, {**labels, "reason": reason}, endpoint.stats.failures[reason])
    yield from families.values()


def _triton_values(endpoint: Endpoint) -> dict[str, int]:
    stats, success = endpoint.stats, Outcome.SUCCESS
    compute = stats.compute_ns[success]
    return {
        "nv_inference_request_success": stats.request_ns[success].count,
        "nv_inference_count": stats.inferred_rows,
        "nv_inference_exec_count": stats.executions,
        "nv_inference_request_duration_us": stats.request_ns[success].total // 1000,
        "nv_inference_queue_duration_us": stats.queue_ns[success].total // 1000,
        "nv_inference_compute_input_duration_us": compute[0].total // 1000,
        "nv_inference_compute_infer_duration_us": compute[1].total // 1000,
        "nv_inference_compute_output_duration_us": compute[2].total // 1000,
        "nv_inference_pending_request_count": endpoint.queue.requests,
    }


def _histograms(endpoints: Iterable[Endpoint]) -> Iterator[Metric]:
    outcome = (*_LABELS, "outcome")
    request = HistogramMetricFamily(
        "bitserve_request_duration_seconds", "Whole request, body read to answer.", labels=outcome
    )
    queue = HistogramMetricFamily("bitserve_queue_duration_seconds", "Time in the queue.", labels=outcome)
    compute = HistogramMetricFamily(
        "bitserve_compute_duration_seconds", "Time of the request's batch, by phase.", labels=(*outcome, "phase")
    )
    rows = HistogramMetricFamily("bitserve_batch_rows", "Rows of a batch.", labels=_LABELS)
    for endpoint in endpoints:
        labels, stats = _labels(endpoint), endpoint.stats
        for name in Outcome:
            _add_seconds(request, (*labels, name.value), stats.request_ns[name])
            _add_seconds(queue, (*labels, name.value), stats.queue_ns[name])
        for name, phases in stats.compute_ns.items():
            for phase, histogram in zip(PHASES, phases, strict=True):
                _add_seconds(compute, (*labels, name.value, phase), histogram)
        rows.add_metric(labels, _buckets(stats.batch_rows, [str(b) for b in ROW_BUCKETS]), stats.batch_rows.total)
    yield from (request, queue, compute, rows)


def _add_seconds(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    family.add_metric(labels, _buckets(histogram, _S_BOUNDS), histogram.total / 1e9)


def _buckets(histogram: Histogram, bounds: Iterable[str]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as the exposition format wants them."""
    cumulative, buckets = 0, []
    for bound, count in zip([*bounds, "+Inf"], histogram.counts, strict=True):
        cumulative += count
        buckets.append((bound, float(cumulative)))
    return buckets
