"""The runtime on a simulated GPU: right answers, everything in order, nothing left."""

from __future__ import annotations

import queue

import numpy as np
import pytest

from engines.errors import DeviceLost, EngineFailed, OutOfMemory, PlanInvalid
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned, planned, scaled_sums

MODEL = scaled_sums()


def opened(gpu: SimulatedGpu, made: Planned = MODEL, **keys: object) -> TensorRtSession:
    return TensorRtSession(trt, {0: gpu}, made.data, made.plan, made.manifest, most_rows=8, **keys)  # type: ignore[arg-type]


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4), dtype=np.float32)


def assert_answers(y: np.ndarray, x: np.ndarray) -> None:
    """To five roundings of sums that are smaller than 32."""
    np.testing.assert_allclose(y, planned(MODEL, x), rtol=0, atol=5 * 32 * 2.0**-24)


def test_batches_of_all_sizes_are_answered_by_graphs(gpu: SimulatedGpu) -> None:
    session = opened(gpu)
    before = gpu.replays
    for count in (1, 2, 3, 5, 8, 7, 1):
        for slot in session.slots:
            x = rows(count, count)
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            assert_answers(slot.outputs()["y"], x)
    assert gpu.replays - before == 7 * len(session.slots)
    session.close()


def test_both_slots_are_under_way_at_once_and_keep_to_their_own_rows(gpu: SimulatedGpu) -> None:
    session = opened(gpu, instances=2)
    ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    asked: dict[int, np.ndarray] = {}

    def ask(at: int, seed: int) -> None:
        x = asked[at] = rows(1 + seed % 8, seed)
        session.slots[at].bind({"x": x.shape})["x"][:] = x
        session.slots[at].launch(lambda error: ended.put((at, error)))

    for at in range(len(session.slots)):
        ask(at, at)
    for seed in range(200):
        at, error = ended.get(timeout=10)
        assert error is None
        assert_answers(session.slots[at].outputs()["y"], asked[at])
        ask(at, seed)
    for _ in session.slots:
        assert ended.get(timeout=10)[1] is None
    session.close()


def test_where_captures_are_refused_batches_run_without(gpu: SimulatedGpu) -> None:
    gpu.faults.refuse_captures = True
    session = opened(gpu)
    x = rows(3, 0)
    slot = session.slots[0]
    slot.bind({"x": x.shape})["x"][:] = x
    assert slot.run() is None
    assert_answers(slot.outputs()["y"], x)
    assert gpu.replays == 0
    session.close()


def test_more_rows_than_the_plan_has_are_refused_and_the_slot_goes_on(gpu: SimulatedGpu) -> None:
    session = opened(gpu)
    slot = session.slots[0]
    with pytest.raises(EngineFailed, match=r"other sizes than 'x' \[9, 4\]"):
        slot.bind({"x": (9, 4)})
    slot.bind({"x": (1, 4)})["x"][:] = 1
    assert slot.run() is None
    session.close()


def test_a_plan_of_another_kind_is_not_taken(gpu: SimulatedGpu) -> None:
    with pytest.raises(PlanInvalid, match="Magic tag does not match"):
        TensorRtSession(trt, {0: gpu}, b"nonsense", MODEL.plan, MODEL.manifest)


def test_memory_can_be_short_at_every_allocation_and_then_nothing_is_held() -> None:
    whole = SimulatedGpu()
    opened(whole, instances=2).close()
    assert whole.allocations > 10
    for number in range(1, whole.allocations + 1):
        gpu = SimulatedGpu(Faults(full_at=number, slowest_s=0))
        with pytest.raises(OutOfMemory, match=r"\d+ bytes"):
            opened(gpu, instances=2)
        assert (gpu.broken, gpu.held()) == ([], {}), f"allocation {number}"


def test_the_device_can_be_lost_at_every_call() -> None:
    whole = SimulatedGpu(Faults(slowest_s=0))
    serving = _serve(whole)
    assert (whole.broken, whole.held()) == ([], {})
    for number in range(1, len(whole.calls) + 1):
        gpu = SimulatedGpu(Faults(lost_at=number, slowest_s=0))
        if number <= serving:
            told: list[DeviceLost] = []
            with pytest.raises(DeviceLost):
                _serve(gpu, told)
            assert len(told) == 1, f"call {number}, {gpu.calls[-1]}: readiness hears of it from nobody else"
        else:  # it is closed, and nobody waits any more
            _serve(gpu)
        assert not gpu.broken, f"call {number}, {gpu.calls[-1]}"
        assert "contexts" not in gpu.held(), f"call {number}"


def _serve(gpu: SimulatedGpu, told: list[DeviceLost] | None = None) -> int:
    """A session is opened, asked twice and closed; how many calls were made before. Raises what it is answered."""
    told = [] if told is None else told
    session = opened(gpu, lost=told.append)
    try:
        for slot in session.slots:
            slot.bind({"x": (3, 4)})["x"][:] = 1
            error = slot.run()
            if error is not None:
                assert len(told) == 1
                raise error
        return len(gpu.calls)
    finally:
        session.close()
