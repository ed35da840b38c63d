"""Batches of a model are spread over its GPUs and instances, as an endpoint takes slots for them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator

import pytest

from app.serving.slots import FreeSlots
from engines.runtime.session import Slot
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import scaled_sums
from tests.support.fakes import HeldSlot

MODEL = scaled_sums()
GPUS, INSTANCES, SLOTS = 2, 3, 12


@pytest.fixture
def free() -> Iterator[FreeSlots]:
    gpus = {number: SimulatedGpu(Faults(slowest_s=0)) for number in range(GPUS)}
    session = TensorRtSession(trt, gpus, MODEL.data, MODEL.plan, MODEL.manifest, instances=INSTANCES, most_rows=8)
    with contextlib.closing(session):
        assert len(session.slots) == SLOTS
        yield FreeSlots(session.slots)


def gpus_of(slots: list[Slot]) -> Counter[Hashable]:
    return Counter(slot.lanes[0] for slot in slots)


@pytest.mark.parametrize("count", range(1, SLOTS + 1))
def test_each_gpu_and_each_instance_gets_its_share(free: FreeSlots, count: int) -> None:
    taken = [free.take() for _ in range(count)]
    instances = Counter(slot.lanes for slot in taken)
    for shares, places in ((gpus_of(taken), GPUS), (instances, GPUS * INSTANCES)):
        assert max(shares.values()) <= -(-count // places)


def test_one_batch_at_a_time_goes_round(free: FreeSlots) -> None:
    seen = []
    for _ in range(SLOTS):
        seen.append(free.take())
        free.give(seen[-1])
    assert len({id(slot) for slot in seen}) == SLOTS


def test_where_a_batch_ends_the_next_one_goes(free: FreeSlots) -> None:
    taken = [free.take() for _ in range(SLOTS)]
    assert not free
    with pytest.raises(IndexError):
        free.take()
    for slot in (taken[3], taken[8]):
        free.give(slot)
        assert free.take() is slot


def test_a_gpu_that_is_lost_is_asked_last(free: FreeSlots) -> None:
    slot = free.take()
    free.give(slot, is_lost=True)
    taken = [free.take() for _ in range(SLOTS)]
    assert gpus_of(taken[: SLOTS // GPUS]).keys().isdisjoint(slot.lanes)
    assert gpus_of(taken[SLOTS // GPUS :]) == {slot.lanes[0]: SLOTS // GPUS}


def test_what_computes_by_itself_is_taken_as_it_was_given_back() -> None:
    slots = [HeldSlot(lambda inputs: inputs) for _ in range(3)]
    free = FreeSlots(slots)
    first, second = free.take(), free.take()
    assert [first, second] == [slots[2], slots[1]]
    free.give(first)
    assert free.take() is first
