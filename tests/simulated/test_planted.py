"""Faults that are planted into the runtime: the simulated GPU, or a wrong answer, tells of each."""

from __future__ import annotations

import contextlib
import queue

import numpy as np
import pytest

from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.tensorrt_graphs import Graphs
from engines.runtime.tensorrt_instance import TensorRtInstance
from engines.runtime.tensorrt_slot import GpuSlot
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums
from tests.simulated.planting import plant

MODEL, PROFILES = scaled_sums(), scaled_sums([(2, 2, 2), (8, 8, 8)])
FAULTS: dict[str, tuple[type, str, str, str, str]] = {
    "the computation does not wait for the copy in": (
        TensorRtInstance, "_enqueue", "driver.wait(streams.compute, events.copied)", "pass",
        "the reading of inputs uses memory"),
    "the copy out does not wait for the computation": (
        TensorRtInstance, "_enqueue", "driver.wait(streams.copy_out, events.computed)", "pass",
        "a copy out uses memory"),
    "a result is read before its event": (
        TensorRtInstance, "_complete", "self._driver.synchronize(slot.events.finished)", "pass",
        "a wrong answer"),
    "a slot is free before its batch has ended": (
        TensorRtInstance, "_begin", "self._under_way.put((slot, flight))", "self._flights.end(flight, None)",
        "a wrong answer"),
    "a copy in is put into the stream of copies out": (
        TensorRtInstance, "_enqueue", "buffer.host[:size], streams.copy_in)", "buffer.host[:size], streams.copy_out)",
        "the reading of inputs uses memory"),
    "the end is recorded in the stream of computations": (
        TensorRtInstance, "_enqueue", "driver.record(events.finished, streams.copy_out)",
        "driver.record(events.finished, streams.compute)",
        "a computation uses memory"),
    "the graph of another slot is replayed": (
        Graphs, "of", "(slot.batch.shapes, slot.number)", "(slot.batch.shapes, 1 - slot.number)",
        "a wrong answer"),
    "the graph of a smaller bucket is replayed": (
        Graphs, "of", "self._graphs.get((slot.batch.shapes, slot.number))",
        "self._graphs.get((slot.batch.shapes, slot.number)) and "
        "min((s, g) for (s, n), g in self._graphs.items() if n == slot.number)[1]",
        "a wrong answer"),
    "a graph records the event that others wait for": (
        TensorRtInstance, "_capture", "consumed=False", "consumed=True",
        "an event that was recorded within a graph"),
    "a failed batch does not wait for its copies": (
        TensorRtInstance, "_fail", "self._driver.synchronize(slot.events.finished)", "pass",
        "a copy in uses memory"),
    "everything runs in the default stream": (
        TensorRtInstance, "_make_all", "held_by(held, driver.stream, driver.close_stream)", "0",
        "the default stream is used"),
    "memory of the host is not pinned": (
        GpuSlot, "_buffer", "driver.pinned(size)", "np.zeros(size, np.uint8)",
        "not page-locked"),
    "memory of the device is not freed": (
        GpuSlot, "_free", "give_back(self._driver.free, buffer.device)", "pass",
        "held: {'blocks'"),
    "graphs are not closed": (
        Graphs, "drop", "give_back(self._driver.close_graph, graph.handle)", "pass",
        "'graphs': 8"),
    "a thread keeps the context": (
        TensorRtInstance, "_complete_all", "held.callback(self._driver.detach)", "pass",
        "held: {'contexts': 1}"),
    "rows that nobody asked for are answered": (
        GpuSlot, "view", "self.batch.rows", "self.batch.bucket",
        "a wrong answer"),
    "a batch is computed by the profile before": (
        TensorRtInstance, "_shaped", "context.active_optimization_profile != profile", "False",
        "TensorRT does not take shape [8, 4]"),
    "a graph is captured without a run before": (
        TensorRtInstance, "_warm", "self._enqueue(slot, flight)", "pass",
        "has not run with these shapes just before"),
}  # fmt: skip


def find() -> list[str]:
    """What is wrong with the runtime, as a server uses it: two slots at once, all sizes, batches that fail."""
    found: list[str] = []
    for model, graphs, failing in ((MODEL, True, ()), (PROFILES, True, ()), (MODEL, False, range(11, 90, 4))):
        gpu = SimulatedGpu(Faults(slowest_s=0.001, fail_runs=frozenset(failing)))
        try:
            session = TensorRtSession(trt, {0: gpu}, model.data, model.plan, model.manifest, most_rows=8, graphs=graphs)
            with contextlib.closing(session):
                found += _used(session)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        found += gpu.broken
        found += [f"held: {held}"] if (held := gpu.held()) else []
        gpu.is_lost = True  # what a fault has left goes with it
    return found


def _used(session: TensorRtSession) -> list[str]:
    ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    asked: dict[int, np.ndarray] = {}
    wrong = []

    def ask(at: int, number: int) -> None:
        x = asked[at] = np.random.default_rng(number).standard_normal((1 + number % 8, 4), dtype=np.float32)
        slot = session.slots[at]
        slot.bind({"x": x.shape})["x"][:] = x
        slot.launch(lambda error: ended.put((at, error)))

    for number in range(40):
        if number < len(session.slots):
            ask(number, number)
            continue
        at, error = ended.get(timeout=10)
        y = session.slots[at].outputs().get("y") if error is None else None
        if y is not None and (
            y.shape != (len(asked[at]), 2) or not np.allclose(y, planned(MODEL, asked[at]), atol=1e-5)
        ):
            wrong.append("a wrong answer")
        ask(at, number)
    for _ in session.slots:
        ended.get(timeout=10)
    return wrong


def test_without_a_fault_nothing_is_found() -> None:
    assert find() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    *planted_fault, said = FAULTS[fault]
    plant(monkeypatch, *planted_fault)
    found = find()
    assert any(said in one for one in found), found
