"""A GPU that does not go on: no error tells of it, and whoever waits for it would wait for ever."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engines.errors import DeviceLost
from engines.runtime import flights
from engines.runtime.driver import Memory
from engines.runtime.flights import Flights
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.watch import Watch
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums
from tests.simulated.test_server import asked, health
from tests.support.onnx_models import place
from tests.support.servers import Server, running, until

MODEL = scaled_sums()
Ended = queue.SimpleQueue[BaseException | None]


@pytest.fixture
def hang(tmp_path: Path) -> Path:
    """As long as there is a file of this name, the GPU hangs."""
    return tmp_path / "hang"


class Watching(Watch):
    """It looks often, and waits long, until a GPU hangs: a machine that is busy is not taken for one that does."""

    def __init__(self) -> None:
        super().__init__(60)
        self._every_s = 0.02

    def expect(self) -> None:
        self._hang_s = 0.1


def launched(session: TensorRtSession, at: int, ended: Ended) -> np.ndarray:
    x = np.random.default_rng(at).standard_normal((2, 4), dtype=np.float32)
    session.slots[at].bind({"x": x.shape})["x"][:] = x
    session.slots[at].launch(ended.put)
    return x


def session_on(
    gpu: SimulatedGpu, watch: Watch, lost: list[DeviceLost], target: str = "tensorrt", **options: Any
) -> TensorRtSession:
    plan = msgspec.structs.replace(MODEL.plan, target=target)
    return TensorRtSession(
        trt, {0: gpu}, MODEL.data, plan, MODEL.manifest, instances=2, most_rows=8, lost=lost.append, watches={0: watch},
        **options,
    )  # fmt: skip


def require_given_back(gpu: SimulatedGpu) -> None:
    """Beside whoever has closed it, once the GPU goes on."""
    until(lambda: gpu.held() == {}, "given back")
    assert gpu.broken == []


def test_all_batches_end_with_it_and_what_is_launched_later_at_once(hang: Path) -> None:
    """Of all instances on the GPU, though one of them alone was found."""
    gpu, watch, lost = SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), Watching(), list[DeviceLost]()
    session, other = session_on(gpu, watch, lost), session_on(gpu, watch, lost)
    ended: Ended = queue.SimpleQueue()
    x = launched(session, 0, ended)
    assert ended.get(timeout=10) is None
    np.testing.assert_allclose(session.slots[0].outputs()["y"], planned(MODEL, x), rtol=0, atol=5 * 32 * 2.0**-24)
    hang.touch()
    watch.expect()
    for at in range(2):
        launched(session, at, ended)
    error, same = (ended.get(timeout=10) for _ in range(2))
    assert error is same
    assert "has not ended within 0.1 s" in str(error)
    until(lambda: len(lost) == 4, "each instance tells")
    assert set(lost) == {error}
    for one in (session, other):
        for at in range(4):
            launched(one, at, ended)
            assert ended.get_nowait() is error
    with pytest.raises(DeviceLost, match="has not ended"):
        session_on(gpu, watch, lost)
    for one in (session, other):
        one.close()
    hang.unlink()
    require_given_back(gpu)
    assert ended.empty()
    assert set(lost) == {error}


def hangs_from(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, hang: Path, watch: Watching) -> None:
    """The GPU does as soon as the method is called."""
    made = getattr(owner, method)

    def begins(self: Any, *given: Any, **more: Any) -> None:
        hang.touch()
        watch.expect()
        made(self, *given, **more)

    monkeypatch.setattr(flights, "PATIENCE", 2)
    monkeypatch.setattr(owner, method, begins)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_load_ends_with_it_whatever_of_it_waits_for_the_gpu(
    hang: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights, and the first batch."""
    for owner, method in ((trt.ICudaEngine, "__init__"), (trt.IExecutionContext, "__init__")):
        gpu, lost = SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), list[DeviceLost]()
        watch = Watching()
        with monkeypatch.context() as patched:
            hangs_from(patched, owner, method, hang, watch)
            with pytest.raises(DeviceLost, match="has not ended"):
                session_on(gpu, watch, lost, target)
        assert len(set(lost)) == 1
        hang.unlink()
        require_given_back(gpu)


def test_a_batch_ends_with_it_that_does_not_come_into_the_streams(hang: Path) -> None:
    """They are full: the call that puts it there waits for the GPU."""
    faults, lost = Faults(slowest_s=0, hang_file=str(hang)), list[DeviceLost]()
    gpu, watch = SimulatedGpu(faults), Watching()
    session = session_on(gpu, watch, lost)
    faults.most_waiting = 1
    hang.touch()
    watch.expect()
    ended: Ended = queue.SimpleQueue()
    launched(session, 0, ended)
    assert isinstance(ended.get(timeout=10), DeviceLost)
    assert gpu.replays == 0, "it waits before"
    session.close()
    hang.unlink()
    require_given_back(gpu)


@pytest.mark.parametrize("shares", [False, True])
def test_a_compiler_is_not_taken_for_a_gpu_that_hangs(monkeypatch: pytest.MonkeyPatch, *, shares: bool) -> None:
    """TensorRT-RTX compiles when a batch comes; where scratch memory is shared, others wait for their turns."""
    gpu, lost = SimulatedGpu(Faults(slowest_s=0)), list[DeviceLost]()
    if shares:
        monkeypatch.setattr(gpu, "memory", lambda: Memory(0, 2**34))
    session = session_on(gpu, Watching(), lost, "tensorrt-rtx", scratch={0: Scratch(gpu)} if shares else {})
    compiler, done = threading.Event(), threading.Event()
    monkeypatch.setattr(trt.IExecutionContext, "_specialize", lambda self: (compiler.set(), done.wait()))
    ended: Ended = queue.SimpleQueue()
    for at in (0, 2):  # of two instances
        launched(session, at, ended)
    assert compiler.wait(10)
    under_way = [instance._flights for instance in session._instances]
    until(lambda: all(one._elsewhere and not one._on_gpu for one in under_way), "both wait for a compiler")
    for instance in session._instances:  # whose watch looks, too
        first = instance.look()
        assert [instance.look() for _ in range(10)][-1] - first < 5, "each look is a part of one"
    done.set()
    assert [ended.get(timeout=10) for _ in range(2)] == [None, None]
    assert not lost
    session.close()
    assert (gpu.held(), gpu.broken) == ({}, [])


def test_what_takes_its_time_is_waited_for(hang: Path) -> None:
    gpu, lost = SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), list[DeviceLost]()
    session = session_on(gpu, Watch(60), lost)
    ended: Ended = queue.SimpleQueue()
    hang.touch()
    launched(session, 0, ended)
    with pytest.raises(queue.Empty):
        ended.get(timeout=1.5)  # longer than there is between two looks
    hang.unlink()
    assert ended.get(timeout=10) is None
    session.close()
    assert not lost


def test_a_launch_is_ended_by_whoever_is_first() -> None:
    flights, ended = Flights(), queue.SimpleQueue[BaseException | None]()
    first, second = flights.begin(ended.put), flights.begin(ended.put)
    assert first is not None
    assert second is not None
    flights.end(first, None)
    error = DeviceLost("it hangs")
    flights.end_all(error)
    flights.end(second, None)
    assert flights.begin(ended.put) is None
    assert [ended.get_nowait() for _ in range(3)] == [None, error, error]
    assert ended.empty()


def test_looks_count_while_the_gpu_alone_is_waited_for() -> None:
    flights = Flights()
    first, second = flights.begin(lambda _: None), flights.begin(lambda _: None)
    assert first is not None
    assert second is not None
    assert [flights.look(), flights.look()] == [0, 0], "nothing is there yet"
    flights.start(first)
    assert [flights.look(), flights.look()] == [1, 2]
    flights.start(second)
    assert flights.look() == 3
    flights.end(first, None)
    assert flights.look() == 1, "it goes on"
    flights.end(second, None)
    assert flights.look() == 0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place(tmp_path / "models", "sums", MODEL.model)
    return tmp_path / "models"


@pytest.mark.parametrize("front_ends", ["1", "2"])
def test_a_server_tells_its_clients_then_by_readiness_then_by_liveness_and_can_be_ended(
    repository: Path, hang: Path, front_ends: str
) -> None:
    env = {"SIMULATED_GPU": f'{{"slowest_s": 0.0002, "hang_file": "{hang}"}}'}
    flags = ("--gpu-hang-s", "3", "--front-ends", front_ends)
    with running(repository, *flags, env=env, on_gpu=True) as server:
        server.wait_ready()
        assert asked(server, 1)[1].status_code == 200
        hang.touch()
        _require_refusals(server)
        until(lambda: health(server, "ready") == 503, "not ready")
        until(lambda: health(server, "live") == 503, "not live")
        assert any("has not ended within 3 s" in line for line in server.log)
        assert server.stop() == 0


def test_a_load_that_hangs_does_not_keep_the_process(repository: Path, hang: Path) -> None:
    """Nor others, where nobody looks."""
    hang.touch()
    env = {"SIMULATED_GPU": f'{{"hang_file": "{hang}"}}'}
    with running(repository, "--gpu-hang-s", "0", env=env, on_gpu=True) as server:
        server.wait_live()
        until(lambda: server.index()["sums", "1"]["state"] == "LOADING", "loading")
        assert server.stop() == 0


def _require_refusals(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for _, answer in pool.map(lambda seed: asked(server, seed), range(40))]
    assert {answer.status_code for answer in answers} == {503}
    assert "must be started anew" in answers[0].json()["error"]
