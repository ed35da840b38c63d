"""Where a library lets one context alone have a profile, a plan has a set of them for each instance."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from engines.errors import EngineFailed
from engines.manifest import PlanFile
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned, planned, scaled_sums

RANGES = ((2, 2, 2), (8, 8, 8))


@pytest.fixture
def exclusive(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """No context takes a profile that another has had (TensorRT 11, NvInferRuntime.h: contexts that run at once with
    variable shapes must have profiles of their own). Those that each had, by context.
    """
    had: dict[int, set[int]] = {}
    take, make = trt.IExecutionContext.set_optimization_profile_async, trt.IExecutionContext.__init__

    def made(self: Any, *given: Any, **more: Any) -> None:
        make(self, *given, **more)
        self.active_optimization_profile = -1
        had[id(self)] = set()

    def taken(self: Any, profile_index: int, stream_handle: int) -> bool:
        if any(profile_index in profiles for context, profiles in had.items() if context != id(self)):
            return False
        had[id(self)].add(profile_index)
        return bool(take(self, profile_index, stream_handle))

    monkeypatch.setattr(trt.IExecutionContext, "__init__", made)
    monkeypatch.setattr(trt.IExecutionContext, "set_optimization_profile_async", taken)
    return had


def with_sets(sets: int) -> tuple[Planned, PlanFile]:
    model = scaled_sums(RANGES * sets)
    return model, msgspec.structs.replace(model.plan, profile_sets=sets)


def opened(gpu: SimulatedGpu, sets: int, instances: int) -> TensorRtSession:
    model, plan = with_sets(sets)
    return TensorRtSession(trt, {0: gpu}, model.data, plan, model.manifest, instances=instances, most_rows=8)


def require_right(session: TensorRtSession) -> None:
    model = with_sets(1)[0]
    for count in (1, 2, 3, 8):
        for slot in session.slots:
            x = np.random.default_rng(count).standard_normal((count, 4), dtype=np.float32)
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            np.testing.assert_allclose(slot.outputs()["y"], planned(model, x), rtol=0, atol=1e-5)


def test_each_instance_has_its_own(gpu: SimulatedGpu, exclusive: dict[int, set[int]]) -> None:
    session = opened(gpu, 3, 3)
    require_right(session)
    assert sorted(exclusive.values(), key=min) == [{0, 1}, {2, 3}, {4, 5}]
    assert {slot._batches.buckets for slot in session.slots} == {(2, 8)}
    session.close()


def test_one_set_does_not_do_there(gpu: SimulatedGpu, exclusive: dict[int, set[int]]) -> None:
    with pytest.raises(EngineFailed, match="does not take profile"):
        opened(gpu, 1, 2)
    assert len(exclusive) == 2


@pytest.mark.parametrize(("sets", "instances"), [(1, 3), (2, 3), (3, 1)])
def test_where_they_may_be_shared_any_number_does(gpu: SimulatedGpu, sets: int, instances: int) -> None:
    session = opened(gpu, sets, instances)
    require_right(session)
    session.close()
