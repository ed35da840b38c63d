"""The four dashboards. Every rate is taken over Grafana's `$__rate_interval`, which follows the scrape interval."""

from __future__ import annotations

from typing import Any

from panels import Panel, dashboard

__all__ = ["BOARDS"]

_POD = 'job=~"$job",namespace=~"$namespace",pod=~"$pod"'
_MODEL = f'{_POD},model=~"$model",version=~"$version"'
_PODS = {
    "job": "label_values(bitserve_ready, job)",
    "namespace": "label_values(bitserve_ready, namespace)",
    "pod": 'label_values(bitserve_ready{namespace=~"$namespace"}, pod)',
}


def _rate(name: str, labels: str, more: str = "") -> str:
    selected = f"{labels},{more}" if more else labels
    return f"rate({name}{{{selected}}}[$__rate_interval])"


def _sum(name: str, labels: str, by: str = "", more: str = "") -> str:
    return f"sum by ({by}) ({_rate(name, labels, more)})" if by else f"sum({_rate(name, labels, more)})"


def _quantiles(name: str, labels: str, more: str = "", by: str = "") -> tuple[tuple[str, str], ...]:
    grouped = f"{by}, le" if by else "le"
    found = _sum(f"{name}_bucket", labels, grouped, more)
    legend = f" {{{{{by}}}}}" if by else ""
    return tuple((f"histogram_quantile({q}, {found})", f"p{100 * q:g}{legend}") for q in (0.5, 0.9, 0.99))


def _heat(name: str, labels: str, more: str = "") -> tuple[tuple[str, str], ...]:
    selected = f"{labels},{more}" if more else labels
    return ((f"sum by (le) (increase({name}_bucket{{{selected}}}[$__rate_interval]))", "{{le}}"),)


def _gauge(name: str, by: str, labels: str = _POD, of: str = "sum") -> str:
    return f"{of} by ({by}) ({name}{{{labels}}})"


_SERVER_FAULTS = 'reason=~"REJECTED|BACKEND"'
_SUCCESS = 'outcome="success"'
_FAILURES = _sum("nv_inference_request_failure", _POD, more=_SERVER_FAULTS)
_SUCCESSES = _sum("nv_inference_request_success", _POD)
_REQUESTS = "bitserve_request_duration_seconds"


def _stat(title: str, description: str, unit: str, query: str, legend: str = "") -> Panel:
    return Panel(title, description, unit, ((query, legend),), kind="stat", width=4, height=4)


_SERVICE = [
    _stat("Ready replicas", "Pods that accept traffic.", "none", f"sum(bitserve_ready{{{_POD}}})"),
    _stat("Models served", "Versions that at least one pod serves.", "none",
          f'count(sum by (model, version) (bitserve_model_state{{{_POD},state="READY"}}) > 0)'),
    _stat("Requests", "Requests answered with outputs.", "reqps", _SUCCESSES),
    _stat("Errors", "Share of requests that were refused, expired or failed in the engine.", "percentunit",
          f"{_FAILURES} / ({_SUCCESSES} + {_FAILURES})"),
    _stat("p99", "Of successful requests, body read to answer.", "s", _quantiles(_REQUESTS, _POD, _SUCCESS)[2][0]),
    _stat("In flight", "Requests accepted and not yet answered.", "none",
          f"sum(bitserve_requests_in_flight{{{_POD}}})"),
    Panel("Requests by outcome", "rejected: refused by a full queue or a stopping server, or not fit for the model; "
          "expired: waited past their timeout; cancelled: their client left.", "reqps",
          ((_sum(f"{_REQUESTS}_count", _POD, "outcome"), "{{outcome}}"),), stacked=True),
    Panel("Rows by model", "Rows inferred; a request may have many.", "rowsps",
          ((_sum("nv_inference_count", _POD, "model"), "{{model}}"),), stacked=True),
    Panel("Failures by reason", "OTHER is a request that does not fit its model: its client's fault.", "reqps",
          ((_sum("nv_inference_request_failure", _POD, "reason"), "{{reason}}"),), stacked=True),
    Panel("Error ratio by model", "As the alert on errors sees it, over 5 minutes.", "percentunit",
          (('namespace_model:bitserve_errors:ratio_rate5m{namespace=~"$namespace"}', "{{namespace}} {{model}}"),)),
    Panel("Latency", "Quantiles of successful requests, all models together.", "s",
          _quantiles(_REQUESTS, _POD, _SUCCESS)),
    Panel("p99 by model", "As the alert on latency sees it, over 5 minutes.", "s",
          (('namespace_model:bitserve_request_duration_seconds:p99_rate5m{namespace=~"$namespace"}',
            "{{namespace}} {{model}}"),)),
    Panel("Latency heatmap", "Successful requests by how long they took.", "s", _heat(_REQUESTS, _POD, _SUCCESS),
          kind="heatmap", width=12),
    Panel("Queue heatmap", "All requests by how long they waited for a batch, also those that expired.", "s",
          _heat("bitserve_queue_duration_seconds", _POD), kind="heatmap", width=12),
    Panel("Time in the queue", "Quantiles over all requests.", "s",
          _quantiles("bitserve_queue_duration_seconds", _POD)),
    Panel("Requests that wait", "By model; what a batch has taken is not counted.", "none",
          ((_gauge("nv_inference_pending_request_count", "model"), "{{model}}"),), stacked=True),
    Panel("Queue saturation", "Rows that wait, of those that may, in the fullest pod; at 1 requests are refused.",
          "percentunit",
          (('max by (model) (namespace_pod_model:bitserve_queue_rows:ratio{namespace=~"$namespace",pod=~"$pod"})',
            "{{model}}"),), most=1),
    Panel("Busy instances", "Batches that run, of those that may run at once.", "percentunit",
          ((f"{_gauge('bitserve_instances_busy', 'pod')} / {_gauge('bitserve_instances', 'pod')}", "{{pod}}"),),
          most=1),
    Panel("CPU of the server", "Cores that the process with the engines uses.", "none",
          ((_sum("process_cpu_seconds_total", _POD, "pod"), "{{pod}}"),)),
    Panel("CPU of the node", "Of the whole machine a pod runs on.", "percentunit",
          ((_gauge("nv_cpu_utilization", "pod", of="max"), "{{pod}}"),), most=1),
    Panel("Memory of the server", "Resident memory of the process with the engines.", "bytes",
          ((_gauge("process_resident_memory_bytes", "pod"), "{{pod}}"),)),
    Panel("Memory of the node", "Used, of all that the machine has.", "percentunit",
          ((f"{_gauge('nv_cpu_memory_used_bytes', 'pod', of='max')} / "
            f"{_gauge('nv_cpu_memory_total_bytes', 'pod', of='max')}", "{{pod}}"),), most=1),
    Panel("Open files", "Of the process with the engines: connections, mostly.", "none",
          ((_gauge("process_open_fds", "pod"), "{{pod}}"),)),
    Panel("Readiness", "1 while a pod accepts traffic.", "none",
          ((_gauge("bitserve_ready", "pod"), "{{pod}}"),), most=1),
    Panel("Starts", "How often the process with the engines was started anew in an hour.", "none",
          ((f"sum by (pod) (changes(process_start_time_seconds{{{_POD}}}[1h]))", "{{pod}}"),)),
    Panel("Versions by state", "UNAVAILABLE failed to load, or was unloaded by hand.", "none",
          ((_gauge("bitserve_model_state", "state"), "{{state}}"),), stacked=True),
]  # fmt: skip


def _share(phase: str, legend: str) -> tuple[str, str]:
    spent = _sum(f"nv_inference_{phase}_duration_us", _MODEL)
    return f"{spent} / {_sum('nv_inference_request_success', _MODEL)}", legend


_MODELS = [
    Panel("Requests by outcome", "rejected: refused by a full queue or a stopping server, or not fit for the model.",
          "reqps", ((_sum(f"{_REQUESTS}_count", _MODEL, "outcome"), "{{outcome}}"),), stacked=True),
    Panel("Rows by version", "Rows inferred: how traffic moves from one version to the next.", "rowsps",
          ((_sum("nv_inference_count", _MODEL, "model, version"), "{{model}} {{version}}"),), stacked=True),
    Panel("Failures by reason", "BACKEND failed in the engine; OTHER did not fit the model.", "reqps",
          ((_sum("nv_inference_request_failure", _MODEL, "reason"), "{{reason}}"),), stacked=True),
    Panel("Latency", "Quantiles of successful requests.", "s", _quantiles(_REQUESTS, _MODEL, _SUCCESS)),
    Panel("Latency heatmap", "Successful requests by how long they took.", "s", _heat(_REQUESTS, _MODEL, _SUCCESS),
          kind="heatmap", width=16),
    Panel("Queue and compute", "Where a successful request's time goes, on average. Each request is charged its whole "
          "batch; input and output are copies.", "µs",
          (_share("queue", "queue"), _share("compute_input", "input"), _share("compute_infer", "infer"),
           _share("compute_output", "output")), stacked=True),
    Panel("Time in the queue", "Quantiles over all requests.", "s",
          _quantiles("bitserve_queue_duration_seconds", _MODEL)),
    Panel("Time in the engine", "Quantiles, each request charged its whole batch.", "s",
          _quantiles("bitserve_compute_duration_seconds", _MODEL, 'outcome="success",phase="infer"')),
    Panel("Rows a batch", "Mean rows of a batch: near 1, batching gains nothing.", "none",
          ((f"{_sum('nv_inference_count', _MODEL, 'model, version')} / "
            f"{_sum('nv_inference_exec_count', _MODEL, 'model, version')}", "{{model}} {{version}}"),)),
    Panel("Batch sizes", "Batches by their rows.", "none", _heat("bitserve_batch_rows", _MODEL), kind="heatmap",
          width=16),
    Panel("Batches", "Batches run.", "ops",
          ((_sum("nv_inference_exec_count", _MODEL, "model, version"), "{{model}} {{version}}"),)),
    Panel("Why batches left the queue", "Full, a preferred size, the delay was over, or nothing else to wait for.",
          "ops", ((_sum("bitserve_batch_flushes_total", _MODEL, "reason"), "{{reason}}"),), stacked=True),
    Panel("Rows that wait", "And how many may; where none may be refused for their number, there is no limit.", "none",
          ((_gauge("bitserve_queue_rows", "model, version", _MODEL), "{{model}} {{version}}"),
           (f"sum by (model, version) (bitserve_queue_max_rows{{{_MODEL}}} > 0)", "limit {{model}} {{version}}"))),
    Panel("In flight", "Requests accepted and not yet answered.", "none",
          ((_gauge("bitserve_requests_in_flight", "model, version", _MODEL), "{{model}} {{version}}"),)),
    Panel("Busy instances", "Batches that run, and that may run at once.", "none",
          ((_gauge("bitserve_instances_busy", "model, version", _MODEL), "busy {{model}} {{version}}"),
           (_gauge("bitserve_instances", "model, version", _MODEL), "all {{model}} {{version}}"))),
    Panel("Weights in memory", "That the engine holds, as far as known, all pods together.", "bytes",
          ((_gauge("bitserve_model_memory_bytes", "model, version", _MODEL), "{{model}} {{version}}"),), stacked=True),
    Panel("Replicas by state", "Pods that have the versions in this state.", "none",
          ((_gauge("bitserve_model_state", "model, version, state", _MODEL) + " > 0",
            "{{model}} {{version}} {{state}}"),)),
]  # fmt: skip

_BUILT = "bitserve_build_duration_seconds"

# each replica tells the builds of all that share its store, so the most that one tells is all there are
_WAITING = _gauge("bitserve_builds_waiting", "namespace, job", of="max")
_RUNNING = _gauge("bitserve_builds_running", "namespace, job", of="max")

_BUILDS = [
    _stat("Waiting", "Builds that wait for a server that has time, or for their Job's pod.", "none",
          f"sum({_WAITING})"),
    _stat("Running", "Builds that run now.", "none", f"sum({_RUNNING})"),
    _stat("Succeeded", "In the last day.", "none",
          f'sum(increase({_BUILT}_count{{{_POD},outcome="succeeded"}}[1d]))'),
    _stat("Failed", "In the last day.", "none", f'sum(increase({_BUILT}_count{{{_POD},outcome="failed"}}[1d]))'),
    _stat("Share that failed", "Of those that ended in the last day, cancelled ones aside.", "percentunit",
          f'sum(increase({_BUILT}_count{{{_POD},outcome="failed"}}[1d])) / '
          f'sum(increase({_BUILT}_count{{{_POD},outcome=~"failed|succeeded"}}[1d]))'),
    _stat("Mean time", "Of builds that succeeded in the last day.", "s",
          f'sum(increase({_BUILT}_sum{{{_POD},outcome="succeeded"}}[1d])) / '
          f'sum(increase({_BUILT}_count{{{_POD},outcome="succeeded"}}[1d]))'),
    Panel("Builds that ended", "In an hour, by how they did.", "none",
          ((f"sum by (outcome) (increase({_BUILT}_count{{{_POD}}}[1h]))", "{{outcome}}"),), width=12),
    Panel("Queue", "Builds that wait and that run, of all replicas that share a store: each tells the same.", "none",
          ((_WAITING, "waiting {{namespace}} {{job}}"), (_RUNNING, "running {{namespace}} {{job}}")), width=12),
    Panel("Durations", "Quantiles of builds that ended within an hour, from start to end, the wait not counted.", "s",
          tuple((f"histogram_quantile({q}, sum by (le) (increase({_BUILT}_bucket{{{_POD}}}[1h])))", f"p{100 * q:g}")
                for q in (0.5, 0.9, 0.99)), width=12),
    Panel("Durations heatmap", "Builds by how long they took.", "s", _heat(_BUILT, _POD), kind="heatmap", width=12),
    Panel("Versions that load", "A version that was published loads, or is compiled for this machine first.", "none",
          ((f'sum by (model, version) (bitserve_model_state{{{_POD},state="LOADING"}})', "{{model}} {{version}}"),),
          width=12),
    Panel("Versions that cannot be served", "They failed to load, or were unloaded by hand.", "none",
          ((f'sum by (model, version) (bitserve_model_state{{{_POD},state="UNAVAILABLE"}}) > 0',
            "{{model}} {{version}}"),), width=12),
]  # fmt: skip

_GPU = "pod, gpu_uuid"
_NAMED = "{{pod}} {{gpu_uuid}}"
_GPUS = [
    _stat("GPUs", "That the driver tells of.", "none", f"count(nv_gpu_memory_total_bytes{{{_POD}}})"),
    _stat("Pods that lost one", "CUDA gave a GPU up there; the container is started anew.", "none",
          f"sum(bitserve_gpu_lost{{{_POD}}})"),
    _stat("Power", "Of all GPUs together.", "watt", f"sum(nv_gpu_power_usage{{{_POD}}})"),
    _stat("Energy", "Of all GPUs together, in the last hour.", "joule",
          f"sum(increase(nv_energy_consumption{{{_POD}}}[1h]))"),
    _stat("Memory used", "Of all GPUs together.", "bytes", f"sum(nv_gpu_memory_used_bytes{{{_POD}}})"),
    _stat("Memory", "Of all GPUs together.", "bytes", f"sum(nv_gpu_memory_total_bytes{{{_POD}}})"),
    Panel("Utilization", "Share of the time in which something ran on the GPU.", "percentunit",
          ((_gauge("nv_gpu_utilization", _GPU, of="max"), _NAMED),), most=1),
    Panel("Memory used", "Of the GPU's memory, by whoever uses it.", "percentunit",
          ((f"{_gauge('nv_gpu_memory_used_bytes', _GPU, of='max')} / "
            f"{_gauge('nv_gpu_memory_total_bytes', _GPU, of='max')}", _NAMED),), most=1),
    Panel("Memory", "Used and total.", "bytes",
          ((_gauge("nv_gpu_memory_used_bytes", _GPU, of="max"), f"used {_NAMED}"),
           (_gauge("nv_gpu_memory_total_bytes", _GPU, of="max"), f"total {_NAMED}"))),
    Panel("Power", "And the limit at which the GPU slows down.", "watt",
          ((_gauge("nv_gpu_power_usage", _GPU, of="max"), _NAMED),
           (_gauge("nv_gpu_power_limit", _GPU, of="max"), f"limit {_NAMED}"))),
    Panel("Mean power", "From the energy counter, which misses no peak between two scrapes.", "watt",
          ((f"sum by ({_GPU}) ({_rate('nv_energy_consumption', _POD)})", _NAMED),), stacked=True),
    Panel("Energy a request", "Of all GPUs, over successful requests of all models.", "joule",
          ((f"sum by (pod) ({_rate('nv_energy_consumption', _POD)}) / "
            f"sum by (pod) ({_rate('nv_inference_request_success', _POD)})", "{{pod}}"),)),
    Panel("GPUs by pod", "A line that falls is a GPU that the driver no longer tells of.", "none",
          ((f"count by (pod) (nv_gpu_memory_total_bytes{{{_POD}}})", "{{pod}}"),), width=12),
    Panel("GPU lost", "1 from the moment that CUDA gave a GPU up until the process is started anew.", "none",
          ((_gauge("bitserve_gpu_lost", "pod", of="max"), "{{pod}}"),), width=12, most=1),
]  # fmt: skip

_OF_MODEL = 'label_values(bitserve_model_state{namespace=~"$namespace"}, model)'
_OF_VERSION = 'label_values(bitserve_model_state{namespace=~"$namespace",model=~"$model"}, version)'

BOARDS: dict[str, dict[str, Any]] = {
    "service": dashboard("bitserve-service", "bitserve / Service", "Traffic, errors, latency and load of all replicas.",
                         _PODS, _SERVICE),
    "model": dashboard("bitserve-model", "bitserve / Model", "One model or version: batches, and where time goes.",
                       {**_PODS, "model": _OF_MODEL, "version": _OF_VERSION}, _MODELS),
    "builds": dashboard("bitserve-builds", "bitserve / Builds", "Uploads that are compiled, and what became of them.",
                        _PODS, _BUILDS),
    "gpu": dashboard("bitserve-gpu", "bitserve / GPU", "What the driver tells of the GPUs.", _PODS, _GPUS),
}  # fmt: skip
