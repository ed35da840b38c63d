"""Compile a graph for the CPU with OpenVINO, and measure which stream configuration is fastest here."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
import openvino as ov

from engines.errors import EngineFailed, ModelRefused
from engines.manifest import GUARD_OUTPUT, StreamTiming
from engines.operators import Found, find_nodes, listed, operator_of
from engines.passes.binary_layers import with_binary_layers
from engines.passes.byte_integers import with_wrapping_bytes
from engines.passes.guards import with_guards
from engines.passes.pool_ends import with_pool_ends
from engines.passes.sequence_lens import with_lengths_written_out
from engines.reference import Arrays
from engines.runtime.openvino import core, first_line, has_binary_operators, stream_config
from engines.targets.openvino_bundles import bundle_stored
from engines.targets.openvino_forms import refuse_wrong_forms
from engines.targets.openvino_half import keep_halves
from engines.targets.openvino_inputs import with_all_inputs
from engines.targets.openvino_packing import pack_in_layers
from engines.targets.openvino_products import hold_inner_sizes
from engines.targets.openvino_residuals import add_in_layers
from engines.targets.openvino_sequences import keep_batch_order
from engines.targets.openvino_sums import keep_sums_in_rows
from engines.targets.openvino_topk import keep_order_of_equals

__all__ = [
    "Candidate",
    "compile_model",
    "export",
    "filled_requests",
    "guards_of",
    "read_model",
    "reimported",
    "runner",
    "stream_choices",
    "time_streams",
    "timed",
    "unsupported",
]  # fmt: skip

Candidate = tuple[int, int]
"""(streams, threads)."""


class Timed(NamedTuple):
    """Some runs: their number, and what all of them took."""

    runs: int
    wall_s: float
    cpu_s: float

    @property
    def wall_s_per_run(self) -> float:
        return self.wall_s / self.runs

    @property
    def cpu_s_per_run(self) -> float:
        return self.cpu_s / self.runs


_GUARDS = ["bitserve", "guards"]
_NO_RULE, _FAILED = "No conversion rule found for operations:", "Conversion is failed for:"
_ROUNDS = 5
_BUDGET_S = 2.0
_ENOUGH_S = 0.5
_WORTH = 1.05

_fastest: weakref.WeakKeyDictionary[ov.Model, tuple[Candidate, ov.CompiledModel]] = weakref.WeakKeyDictionary()
"""The engine that won the timing, to be exported; it goes when its graph goes. One alone: each has its own weights."""


def read_model(model: onnx.ModelProto) -> ov.Model:
    """OpenVINO's graph of an ONNX model, guarded, and written in the ways that it computes right.

    ModelRefused names every operator that it cannot convert, or is known to answer wrongly.
    """
    refuse_wrong_forms(model)
    guarded, said = with_guards(model)
    try:
        for rewrite in (with_lengths_written_out, with_pool_ends, with_wrapping_bytes):
            guarded = rewrite(guarded)
        if has_binary_operators():
            guarded, _ = with_binary_layers(guarded)
        graph = with_all_inputs(guarded, _converted)
        keep_batch_order(graph)
        keep_order_of_equals(graph)
        hold_inner_sizes(graph)
        add_in_layers(graph)
        keep_sums_in_rows(graph)
        pack_in_layers(graph)
        bundle_stored(graph)
        if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
            keep_halves(graph)
        graph.set_rt_info("\n".join(said), _GUARDS)
        return graph
    except ModelRefused:
        raise
    except Exception as error:
        raise ModelRefused(_refusal(model, error)) from error


def _converted(model: onnx.ModelProto) -> ov.Model:
    return core().read_model(model.SerializeToString())


def unsupported(model: onnx.ModelProto) -> list[Found]:
    """Every (operator, node) of the model that OpenVINO has no conversion for; nothing where it has all."""
    try:
        core().read_model(model.SerializeToString())
    except Exception as error:
        return _named_by(model, str(error), _NO_RULE)
    return []


def _refusal(model: onnx.ModelProto, error: Exception) -> str:
    unknown = _named_by(model, str(error), _NO_RULE)
    if unknown:
        return f"OpenVINO does not know these operators: {listed(unknown)}"
    failed = _named_by(model, str(error), _FAILED)
    if failed:
        return f"OpenVINO cannot convert these operators as they are used: {listed(failed)}: {_reason(str(error))}"
    return f"OpenVINO refuses the model: {first_line(error)}"


def _named_by(model: onnx.ModelProto, said: str, heading: str) -> list[Found]:
    """Nodes of the operators that the front end lists after `heading`: `Foo-21` (its opset), `domain.Foo` else."""
    line = next((line for line in said.splitlines() if heading in line), "")
    names = {name.strip() for name in line.partition(heading)[2].split(",") if name.strip()}
    standard = {name.rpartition("-")[0] for name in names}
    return find_nodes(
        model, lambda node: operator_of(node) in (standard if operator_of(node) == node.op_type else names)
    )


def _reason(said: str) -> str:
    """The first line of the front end's log that says what went wrong with an operator, without source positions."""
    lines = iter(said.splitlines())
    next((line for line in lines if "with a message:" in line), "")
    log = [line.strip() for line in lines]
    meant = (line for line in log if line and "Exception from" not in line and not line.startswith("Check '"))
    return next(meant, "it does not say why")


def guards_of(graph: ov.Model) -> tuple[str, ...]:
    """What the elements of the graph's guard output count."""
    said: str = graph.get_rt_info(_GUARDS).astype(str)
    return tuple(said.splitlines())


def compile_model(model: ov.Model, streams: int, threads: int) -> ov.CompiledModel:
    """Compile for this CPU in FP32; ModelRefused where the plugin cannot.

    What `time_streams` found fastest is not compiled again, so its graph must not be changed.
    """
    choice, engine = _fastest.pop(model, (None, None))  # large: nobody else needs it
    if choice == (streams, threads):
        return engine
    try:
        return core().compile_model(model, "CPU", stream_config(streams, threads))
    except Exception as error:
        raise ModelRefused(f"OpenVINO cannot compile the model: {first_line(error)}") from error


def export(compiled: ov.CompiledModel) -> bytes:
    """The compiled blob. It does not keep the stream configuration."""
    blob: bytes = compiled.export_model().getvalue()
    return blob


def reimported(blob: bytes, streams: int, threads: int) -> ov.CompiledModel:
    """What a server makes of a blob, which may have lost something. The blob is not copied."""
    return core().import_model(ov.Tensor(np.frombuffer(blob, np.uint8)), "CPU", stream_config(streams, threads))


class runner:
    """Runs a compiled model synchronously, by tensor names; returns copies.

    Raises EngineFailed where the engine raises, which spoils the model for every later run: it is imported anew from
    `blob`, which must be given where it was imported itself (such a model is exported empty).
    """

    def __init__(self, compiled: ov.CompiledModel, outputs: Sequence[str], blob: bytes = b"") -> None:
        self.compiled, self._request, self._blob = compiled, compiled.create_infer_request(), blob
        self._outputs = outputs
        self.is_guarded = any(GUARD_OUTPUT in port.names for port in compiled.outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        return self._run(inputs, self._outputs)

    def watched(self, inputs: Arrays) -> Arrays:
        """The outputs, and `GUARD_OUTPUT` where the model has guards."""
        return self._run(inputs, [*self._outputs, GUARD_OUTPUT] if self.is_guarded else self._outputs)

    def _run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        try:
            for name, array in inputs.items():
                self._request.set_tensor(name, ov.Tensor(np.asarray(array, order="C"), shared_memory=False))
            self._request.start_async()
            self._request.wait()
        except Exception as error:
            streams, threads = (self.compiled.get_property(n) for n in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
            self._blob = self._blob or export(self.compiled)
            self.compiled = reimported(self._blob, streams, threads)
            self._request = self.compiled.create_infer_request()
            raise EngineFailed(first_line(error)) from error
        return {name: self._request.get_tensor(name).data.copy() for name in outputs}


def stream_choices(threads: int, one_stream: bool = False) -> list[Candidate]:
    """One stream over all threads (lowest latency) and one stream a thread (no synchronization)."""
    return [(1, threads)] if threads == 1 or one_stream else [(threads, threads), (1, threads)]


def time_streams(
    model: ov.Model, batch: Arrays, rows: int, threads: int, *, one_stream: bool = False
) -> list[StreamTiming]:
    """Rows a second of each choice, best first: medians of up to 5 interleaved rounds, none begun after 2 s.

    The first choice (a stream a thread) is kept unless another is 5 % faster: it also runs two models side by side.
    Where all rounds of the first half second, two at least, say the same of these 5 %, no more are run.
    """
    choices = stream_choices(threads, one_stream)
    engines = [compile_model(model, *choice) for choice in choices]
    pools = [filled_requests(engine, batch, streams) for engine, (streams, _) in zip(engines, choices, strict=True)]
    speeds: list[list[float]] = [[] for _ in choices]
    started = time.monotonic()
    for _ in range(_ROUNDS):
        for pool, speed in zip(pools, speeds, strict=True):
            speed.append(rows / timed(pool).wall_s_per_run)
        spent_s = time.monotonic() - started
        if spent_s > _BUDGET_S or (spent_s > _ENOUGH_S and len(speeds[0]) > 1 and _is_clear(*speeds)):
            break
    timings = [
        StreamTiming(streams, count, rows, round(statistics.median(speed), 1))
        for (streams, count), speed in zip(choices, speeds, strict=True)
    ]
    best = max(timings, key=lambda timing: timing.rows_per_s)
    if best.rows_per_s < timings[0].rows_per_s * _WORTH:
        best = timings[0]
    position = timings.index(best)
    _fastest[model] = choices[position], engines[position]
    return [best, *(timing for timing in timings if timing is not best)]


def _is_clear(first: Sequence[float], *others: Sequence[float]) -> bool:
    """Whether each of the others was 5 % faster than the first in every round, or in none."""
    won = [{b > a * _WORTH for a, b in zip(first, other, strict=True)} for other in others]
    return all(len(rounds) == 1 for rounds in won)


def filled_requests(compiled: ov.CompiledModel, batch: Arrays, count: int) -> list[ov.InferRequest]:
    """Requests that hold `batch` and have run once, so that memory is allocated and shapes are known."""
    requests = [compiled.create_infer_request() for _ in range(count)]
    for request in requests:
        for name, array in batch.items():
            request.set_tensor(name, ov.Tensor(np.asarray(array, order="C"), shared_memory=False))
        request.start_async()
    for request in requests:  # side by side: one after the other would warm up with one core
        request.wait()
    return requests


def timed(requests: Sequence[ov.InferRequest]) -> Timed:
    """Every request runs as often as needed for about 20 ms of work, all side by side."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    runs = 0
    while runs == 0 or time.perf_counter() - started_s < 0.02:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        runs += len(requests)
    return Timed(runs, time.perf_counter() - started_s, time.process_time() - cpu_s)
