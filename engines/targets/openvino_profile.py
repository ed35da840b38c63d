"""What a compiled OpenVINO model is made of, and how fast it runs here. Measures; decides nothing."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec
import openvino as ov

from engines.plugins.native import Native
from engines.reference import Arrays
from engines.report import Layer, Speed
from engines.runtime.openvino import core, stream_config
from engines.targets.openvino import filled_requests
from engines.targets.openvino_fused import BINARY_LAYERS, kind_of, weights_shape

__all__ = ["layers_of", "speeds_of", "timed_layers"]

_MEASUREMENTS = 6
"""Four, and time for the two runs that warm up."""
_FEWEST_RUNS, _MOST_RUNS = 3, 200
_PROFILED_RUNS = 5
_NO_LAYER = frozenset({"Const", "Input", "Output", "Parameter", "Result"})
_PRECISIONS = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "uint8"}
_NOT_RUN = "not_executed"
_MOVE = frozenset({"BinaryPack", "BinaryMaxPool"})


def layers_of(compiled: ov.CompiledModel, graph: ov.Model) -> tuple[Layer, ...]:
    """The operations of `graph` in the order in which they run; constants, inputs and outputs left out.

    An operation holds what was fused into it: `source` names all nodes that it computes. Times are there where the
    model was compiled with PERF_COUNT and has run.
    """
    ordered = sorted(compiled.get_runtime_model().get_ops(), key=lambda op: int(_fact(op, "execOrder") or 0))
    return _as_binary(tuple(_layer(op) for op in ordered if _fact(op, "layerType") not in _NO_LAYER), graph)


def timed_layers(graph: ov.Model, batch: Arrays, threads: int) -> tuple[Layer, ...]:
    """`layers_of` with the mean time of each operation over a few runs of `batch`, on one stream.

    Compiles the graph once more: a model that is to serve should not carry the counters.
    """
    compiled = core().compile_model(graph, "CPU", {**stream_config(1, threads), "PERF_COUNT": True})
    request = filled_requests(compiled, batch, 1)[0]
    for _ in range(_PROFILED_RUNS):
        request.infer()
    return layers_of(compiled, graph)


def _as_binary(layers: tuple[Layer, ...], graph: ov.Model) -> tuple[Layer, ...]:
    """The runtime calls layers of an extension just that: what they are is in the graph, which kernels have run since
    this process began in the counters of the extension itself. A layer that does more is called as one that does not.
    """
    ops = {op.get_friendly_name(): op for op in graph.get_ops() if kind_of(op) in BINARY_LAYERS | _MOVE}
    if not ops:
        return layers
    ran = " and ".join(name for name, count in Native().runs().items() if count)
    return tuple(
        layer if (op := ops.get(layer.source or layer.name)) is None else msgspec.structs.replace(
            layer, op_type=kind_of(op), precision="binary", weight_bytes_saved=_bytes_saved(op),
            kernel="bnn native" if kind_of(op) in _MOVE else f"bnn {ran or 'not run'}",
        )
        for layer in layers
    )  # fmt: skip


def _bytes_saved(op: ov.Node) -> int:
    """Weights of 4 bytes each, less the words that hold them."""
    if kind_of(op) in _MOVE:
        return 0
    shape, own = weights_shape(op), op.get_attributes()
    filters = math.prod(shape[:-1])
    return int(4 * filters * (own["channels"] // own.get("group", 1) - shape[-1]))


def speeds_of(
    compiled: ov.CompiledModel, batch_of: Callable[[int], Arrays], max_batch: int, budget_s: float = 1.5
) -> tuple[Speed, ...]:
    """Latency and throughput at one row, and at `max_batch` where that is more, in about `budget_s`.

    `batch_of(rows)` makes an input of that many rows. Where `max_batch` rows would take longer than the time there
    is, fewer are run: `Speed.rows` says how many. A row that alone takes longer is still run three times.
    """
    streams, share_s = int(compiled.get_property("NUM_STREAMS")), budget_s / _MEASUREMENTS
    single = _speed(compiled, batch_of(1), 1, streams, share_s)
    rows = _affordable_rows(single.latency_us / 1e6, max_batch, share_s)
    return (single,) if rows == 1 else (single, _speed(compiled, batch_of(rows), rows, streams, share_s))


def _affordable_rows(row_s: float, max_batch: int, share_s: float) -> int:
    """`max_batch`, or the largest power of two whose batch takes no longer than one measurement may."""
    rows = max_batch if max_batch * row_s <= share_s else 1
    while rows != max_batch and 2 * rows < max_batch and 2 * rows * row_s <= share_s:
        rows *= 2
    return rows


def _speed(compiled: ov.CompiledModel, batch: Arrays, rows: int, streams: int, share_s: float) -> Speed:
    requests = filled_requests(compiled, batch, streams)
    alone_s = _median_s(requests[:1], share_s)
    together_s = _median_s(requests, share_s) if streams > 1 else alone_s
    return Speed(rows, round(alone_s * 1e6, 1), round(rows * streams / together_s, 1), streams)


def _median_s(requests: Sequence[ov.InferRequest], share_s: float) -> float:
    """Of rounds in which each request runs once, side by side."""
    rounds: list[float] = []
    started = time.perf_counter()
    while len(rounds) < _FEWEST_RUNS or (len(rounds) < _MOST_RUNS and time.perf_counter() - started < share_s):
        began = time.perf_counter()
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        rounds.append(time.perf_counter() - began)
    return statistics.median(rounds)


def _layer(op: ov.Node) -> Layer:
    precision, time_us = _fact(op, "runtimePrecision"), _fact(op, "execTimeMcs")
    if precision == "f16" and _fact(op, "primitiveType").endswith("_f32"):
        precision = "f32"  # the runtime names that of stored weights
    return Layer(
        name=op.get_friendly_name(),
        op_type=_fact(op, "layerType") or op.get_type_name(),
        precision=_PRECISIONS.get(precision, precision),
        kernel=_fact(op, "primitiveType"),
        source=_fact(op, "originalLayersNames"),
        time_us=float(time_us) if time_us not in ("", _NOT_RUN) else None,
    )


def _fact(op: ov.Node, key: str) -> str:
    facts = op.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""
