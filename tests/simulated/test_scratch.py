"""Instances that share scratch memory where the GPU has no room for more: in turn, also when it moves."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.errors import DeviceLost, EngineError, OutOfMemory
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.tensorrt_instance import TensorRtInstance
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned, planned, scaled_sums
from tests.simulated.planting import plant

MB = 1_000_000
USUAL, LARGER, TOO_LARGE = (scaled_sums(scratch_bytes=size) for size in (MB, int(1.3 * MB), 9 * MB))
FULL = Faults(most_bytes=int(3.6 * MB), slowest_s=0.0005)
"""Room for two instances of their own and one to share."""


class Sharing:
    """A GPU and sessions on it."""

    def __init__(self, faults: Faults = FULL) -> None:
        self.gpu = SimulatedGpu(faults)
        self.lost: list[DeviceLost] = []
        self._scratch = {0: Scratch(self.gpu)}
        self._held = contextlib.ExitStack()

    def opened(self, made: Planned = USUAL, instances: int = 1) -> TensorRtSession:
        session = TensorRtSession(
            trt, {0: self.gpu}, made.data, made.plan, made.manifest, instances=instances, most_rows=8,
            scratch=self._scratch, lost=self.lost.append,
        )  # fmt: skip
        self._held.callback(session.close)
        return session

    def close(self) -> None:
        self._held.close()


@pytest.fixture
def sharing() -> Iterator[Sharing]:
    made = Sharing()
    yield made
    made.close()
    assert (made.gpu.broken, made.gpu.held()) == ([], {})


def drive(sessions: list[TensorRtSession], batches: int, enough: threading.Event | None = None) -> list[str]:
    """What was answered wrongly, all slots of all sessions busy with so many batches, and on until it is `enough`."""
    slots = [slot for session in sessions for slot in session.slots]
    ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    asked: dict[int, np.ndarray] = {}
    wrong: list[str] = []

    def start(at: int, number: int) -> None:
        x = asked[at] = np.random.default_rng(number).standard_normal((1 + number % 8, 4), dtype=np.float32)
        slots[at].bind({"x": x.shape})["x"][:] = x
        slots[at].launch(lambda error: ended.put((at, error)))

    for at in range(len(slots)):
        start(at, at)
    number, busy = 0, len(slots)
    while busy:
        at, error = ended.get(timeout=10)
        if error is not None:
            wrong.append(str(error))
        elif not np.allclose(slots[at].outputs()["y"], planned(USUAL, asked[at]), rtol=0, atol=1e-5):
            wrong.append("a wrong answer")
        if number < batches or not (enough is None or enough.is_set()):
            start(at, number)
            number += 1
        else:
            busy -= 1
    return wrong


def test_instances_have_their_own_while_there_is_room_and_share_then(sharing: Sharing) -> None:
    sessions, used = [], []
    for _ in range(5):
        before = sharing.gpu.used_bytes()
        sessions.append(sharing.opened())
        used.append((sharing.gpu.used_bytes() - before) // MB)
    assert used == [1, 1, 1, 0, 0], "the third begins what is shared"
    assert drive(sessions, 100) == []
    assert sharing.gpu.replays > 100


def test_of_one_model_all_instances_find_room(sharing: Sharing) -> None:
    session = sharing.opened(instances=6)
    assert len(session.slots) == 12
    assert sharing.gpu.used_bytes() < 3.1 * MB
    assert drive([session], 60) == []


def test_it_moves_for_who_needs_more_and_graphs_are_captured_again(sharing: Sharing) -> None:
    sessions = [sharing.opened() for _ in range(4)]
    assert drive(sessions, 50) == []
    sessions.append(sharing.opened(LARGER))
    assert drive(sessions, 50) == []
    slots, counts = [slot for session in sessions for slot in session.slots], (1, 2, 4, 8)
    for is_again in (False, True):
        before = sharing.gpu.replays
        for slot in slots:
            for count in counts:
                slot.bind({"x": (count, 4)})["x"][:] = 1
                assert slot.run() is None
        if is_again:
            assert sharing.gpu.replays - before == len(slots) * len(counts)


def test_it_moves_while_all_are_busy(sharing: Sharing) -> None:
    sessions = [sharing.opened() for _ in range(4)]
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            enough = threading.Event()
            driven = pool.submit(drive, sessions, 20, enough)
            try:
                larger = sharing.opened(LARGER)
                assert drive([larger], 20) == []
                larger.close()
                assert not driven.done()
            finally:
                enough.set()
            assert driven.result(30) == []


def test_who_needs_more_than_there_is_is_refused_with_sizes_and_the_others_go_on(sharing: Sharing) -> None:
    sessions = [sharing.opened() for _ in range(4)]
    with pytest.raises(OutOfMemory, match=r"9000000 bytes; \d+ are free"):
        sharing.opened(TOO_LARGE)
    assert drive(sessions, 50) == []


def test_it_is_given_back_with_the_last_who_uses_it_and_made_anew(sharing: Sharing) -> None:
    kept = [sharing.opened() for _ in range(2)]
    for _ in range(3):
        before = sharing.gpu.used_bytes()
        session = sharing.opened()
        assert drive([*kept, session], 30) == []
        session.close()
        assert sharing.gpu.used_bytes() == before


def test_memory_can_be_short_at_every_allocation_and_then_nothing_is_held() -> None:
    def serve(faults: Faults) -> Sharing:
        sharing = Sharing(faults)
        with contextlib.closing(sharing):
            for made in (USUAL, USUAL, USUAL, LARGER):
                sharing.opened(made)
        return sharing

    count = serve(Faults(most_bytes=FULL.most_bytes, slowest_s=0)).gpu.allocations
    assert count > 20
    for number in range(1, count + 1):
        faults = Faults(most_bytes=FULL.most_bytes, slowest_s=0, full_from=number)
        sharing = Sharing(faults)
        with contextlib.closing(sharing), contextlib.suppress(OutOfMemory):
            for made in (USUAL, USUAL, USUAL, LARGER):
                sharing.opened(made)
        assert (sharing.gpu.broken, sharing.gpu.held()) == ([], {}), f"allocation {number}"


def test_the_device_can_be_lost_at_any_call() -> None:
    def serve(sharing: Sharing) -> None:
        with contextlib.closing(sharing):
            sessions = [sharing.opened() for _ in range(3)]
            sessions.append(sharing.opened(LARGER))
            for session in sessions:
                session.slots[0].bind({"x": (3, 4)})["x"][:] = 1
                session.slots[0].run()

    whole = Sharing(Faults(most_bytes=FULL.most_bytes, slowest_s=0))
    serve(whole)
    for number in range(1, len(whole.gpu.calls) + 1, 7):
        sharing = Sharing(Faults(most_bytes=FULL.most_bytes, slowest_s=0, lost_at=number))
        with contextlib.suppress(DeviceLost):
            serve(sharing)
        assert not sharing.gpu.broken, f"call {number}"
        assert "contexts" not in sharing.gpu.held(), f"call {number}"


FAULTS: dict[str, tuple[type, str, str, str, str]] = {
    "a turn does not wait for the one before": (
        Scratch, "turn", "self._driver.wait(stream, self._event)", "pass",
        "a computation uses memory"),
    "the end of a turn is not recorded": (
        Scratch, "turn", "self._driver.record(self._event, stream)", "pass",
        "a computation uses memory"),
    "a stale graph is replayed after a move": (
        TensorRtInstance, "_compute_in_turn", "self._graphs.drop()", "pass",
        "which was not allocated or is free again"),
    "TensorRT is not told where it moved": (
        TensorRtInstance, "_compute_in_turn", "self._context.set_device_memory(*place)",
        "self._place.address or self._context.set_device_memory(*place)",
        "which was not allocated or is free again"),
    "an instance that goes leaves it behind": (
        Scratch, "leave", "self._users -= 1", "pass",
        "held: {'blocks': 1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str | None) -> None:
    if fault is not None:
        *planted_fault, _ = FAULTS[fault]
        plant(monkeypatch, *planted_fault)
    found = moved()
    assert (found == []) if fault is None else any(FAULTS[fault][-1] in one for one in found), found


def moved() -> list[str]:
    """What is wrong where memory is shared, moves, and is given back."""
    sharing = Sharing(Faults(most_bytes=FULL.most_bytes, slowest_s=0.001))
    found: list[str] = []
    try:
        with contextlib.closing(sharing):
            sessions = [sharing.opened() for _ in range(4)]
            found += drive(sessions, 40)
            sessions.append(sharing.opened(LARGER))
            found += drive(sessions, 60)
    except EngineError as error:
        found.append(f"{type(error).__name__}: {error}")
    found += sharing.gpu.broken
    found += [f"held: {held}"] if (held := sharing.gpu.held()) else []
    sharing.gpu.is_lost = True
    return found
