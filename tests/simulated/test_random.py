"""Random traffic through serving onto the simulated GPU: every request is answered once, and rightly."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import Cancelled, DeviceGone, InferenceFailed, ServingError, Stopping
from app.serving.fitting import Call, InputTensor
from app.serving.gateway import Gateway
from app.serving.limits import Limits, ModelOptions
from app.serving.registry import ModelState, Registry, Version
from engines.errors import DeviceLost
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums

MODEL = scaled_sums()


class Asked:
    """A request and its answer. `replies` has one element in the end."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.replies = x, list[Any]()
        self.ticket: Any = None

    def send(self, reply: Any, *, final: bool) -> None:
        self.replies.append(reply if isinstance(reply, ServingError) else {n: a.copy() for n, a in reply.items()})

    def assert_right(self, *, lost: bool, failing: bool) -> None:
        assert len(self.replies) == 1, "it was not answered, or twice"
        reply = self.replies[0]
        if isinstance(reply, ServingError):
            allowed = [Cancelled, Stopping, *([DeviceGone] if lost else []), *([InferenceFailed] if failing else [])]
            assert isinstance(reply, tuple(allowed)), repr(reply)
        else:
            np.testing.assert_allclose(reply["y"], planned(MODEL, self.x), rtol=0, atol=5 * 32 * 2.0**-24)


class Serving:
    """A gateway with one model on one GPU, in the running loop."""

    def __init__(self, gpu: SimulatedGpu, instances: int, *, graphs: bool) -> None:
        loop = asyncio.get_running_loop()
        self.gpu, self._instances, self._graphs = gpu, instances, graphs
        self.gateway = Gateway(Registry(), Device(loop, 2), Device(loop, 4))
        self.lost: list[DeviceLost] = []
        self.asked: list[Asked] = []
        self._closing: list[asyncio.Task[None]] = []
        self.endpoint: Endpoint | None = None

    async def load(self) -> None:
        self.gpu.fails = False  # while it is warmed up
        session = await asyncio.to_thread(
            TensorRtSession, trt, {0: self.gpu}, MODEL.data, MODEL.plan, MODEL.manifest,
            instances=self._instances, most_rows=8, lost=self.lost.append, graphs=self._graphs,
        )  # fmt: skip
        self.gpu.fails = True
        options = ModelOptions(limits=Limits(max_batch_rows=8))
        made = Endpoint(
            "sums", 1, MODEL.manifest.inputs, MODEL.manifest.outputs, session, options, self.gateway.device_of(session)
        )
        old, self.endpoint = self.endpoint, made
        self.gateway.registry.set(Version("sums", 1, ModelState.READY, "", made))
        self._session, session_before = session, getattr(self, "_session", None)
        if old is not None:
            self._closing.append(asyncio.ensure_future(self._retire(old, session_before)))

    async def _retire(self, endpoint: Endpoint, session: Any) -> None:
        gone = asyncio.Event()
        self.gateway.retire(endpoint, gone.set)
        await gone.wait()
        await asyncio.to_thread(session.close)

    def ask(self, rows: int, seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((rows, 4), dtype=np.float32)
        asked = Asked(x)
        self.asked.append(asked)
        call = Call({"x": InputTensor("FP32", x)})
        asked.ticket = self.endpoint, self.gateway.submit(self.endpoint, call, asked, time.monotonic_ns())  # type: ignore[arg-type]

    def cancel(self, which: int) -> None:
        if self.asked:
            self.gateway.cancel(*self.asked[which % len(self.asked)].ticket)

    async def end(self) -> None:
        assert self.endpoint is not None
        await self._retire(self.endpoint, self._session)
        await asyncio.gather(*self._closing)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 8)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("load"), st.just(0)),
    ),
    max_size=60,
)


class Loss(NamedTuple):
    """The device is lost so many calls after a step."""

    step: int
    calls: int


async def _run(
    gpu: SimulatedGpu, todo: list[tuple[str, int]], instances: int, loss: Loss | None, *, graphs: bool
) -> Serving:
    serving = Serving(gpu, instances, graphs=graphs)
    await serving.load()
    for number, (what, count) in enumerate(todo):
        if loss is not None and number == loss.step:
            gpu.faults.lost_at = len(gpu.calls) + loss.calls
        if what == "ask":
            serving.ask(count, number)
        elif what == "cancel":
            serving.cancel(count)
        elif what == "load":
            with contextlib.suppress(DeviceLost):  # what served still does, and says so
                await serving.load()
        else:
            await asyncio.sleep(0.0003 * count)
    await serving.end()
    return serving


losses = st.none() | st.builds(Loss, st.integers(0, 30), st.integers(1, 300))


@settings(max_examples=80, deadline=None)
@given(
    todo=steps, instances=st.integers(1, 2), graphs=st.booleans(), seed=st.integers(0, 2**16), failing=st.booleans(),
    loss=losses,
)  # fmt: skip
def test_every_request_is_answered_once_and_rightly(
    todo: list[tuple[str, int]], instances: int, graphs: bool, seed: int, failing: bool, loss: Loss | None
) -> None:
    """Among cancels, loads, runs that fail, and with a device that is lost: each with the others."""
    runs = frozenset(range(2, 2000, 3)) if failing and not graphs else frozenset()
    gpu = SimulatedGpu(Faults(slowest_s=0.0003, fail_runs=runs), seed)
    serving = asyncio.run(asyncio.wait_for(_run(gpu, todo, instances, loss, graphs=graphs), 60))
    for asked in serving.asked:
        asked.assert_right(lost=gpu.is_lost, failing=bool(runs))
    assert (gpu.broken, serving.gateway.in_flight) == ([], 0)
    assert gpu.held() == {} or (gpu.is_lost and "contexts" not in gpu.held())
    assert bool(serving.lost) <= gpu.is_lost


@pytest.mark.parametrize("seed", range(40))
def test_a_device_that_is_lost_in_the_midst_of_it_leaves_nobody_waiting(seed: int) -> None:
    rng = random.Random(seed)
    todo = [("ask", rng.randint(1, 8)) if rng.random() < 0.7 else ("turn", 1) for _ in range(60)]
    gpu = SimulatedGpu(Faults(slowest_s=0.0003), seed)

    async def run() -> Serving:
        serving = Serving(gpu, 2, graphs=bool(seed % 2))
        await serving.load()
        gpu.faults.lost_at = len(gpu.calls) + rng.randint(1, 300)
        for number, (what, count) in enumerate(todo):
            if what == "ask":
                serving.ask(count, number)
            else:
                await asyncio.sleep(0.0003)
        await serving.end()
        return serving

    serving = asyncio.run(asyncio.wait_for(run(), 20))
    for asked in serving.asked:
        asked.assert_right(lost=True, failing=False)
    assert not gpu.broken
    if any(isinstance(asked.replies[0], DeviceGone) for asked in serving.asked):
        assert serving.lost
