"""A GPU that does not go on: no error tells of it, and whoever waits for it would wait for ever."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeviceLost
from engines.runtime.flights import Flights, Watch
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import Faults, SimulatedGpu
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


def launched(session: TensorRtSession, at: int, ended: Ended) -> np.ndarray:
    x = np.random.default_rng(at).standard_normal((2, 4), dtype=np.float32)
    session.slots[at].bind({"x": x.shape})["x"][:] = x
    session.slots[at].launch(ended.put)
    return x


def session_on(gpu: SimulatedGpu, watch: Watch, lost: list[DeviceLost]) -> TensorRtSession:
    return TensorRtSession(
        trt, {0: gpu}, MODEL.data, MODEL.plan, MODEL.manifest, instances=2, most_rows=8, lost=lost.append,
        watches={0: watch},
    )  # fmt: skip


def test_all_batches_end_with_it_and_what_is_launched_later_at_once(hang: Path) -> None:
    """Of all instances on the GPU, though one of them alone was found."""
    gpu, watch, lost = SimulatedGpu(Faults(slowest_s=0, hang_file=str(hang))), Watch(0.3), list[DeviceLost]()
    session, other = session_on(gpu, watch, lost), session_on(gpu, watch, lost)
    ended: Ended = queue.SimpleQueue()
    x = launched(session, 0, ended)
    assert ended.get(timeout=10) is None
    np.testing.assert_allclose(session.slots[0].outputs()["y"], planned(MODEL, x), rtol=0, atol=5 * 32 * 2.0**-24)
    hang.touch()
    for at in range(2):
        launched(session, at, ended)
    error, same = (ended.get(timeout=10) for _ in range(2))
    assert error is same
    assert "has not ended within 0.3 s" in str(error)
    until(lambda: len(lost) == 4, "each instance tells")
    assert set(lost) == {error}
    for one in (session, other):
        for at in range(4):
            launched(one, at, ended)
            assert ended.get_nowait() is error
    with pytest.raises(DeviceLost, match="has not ended"):  # it is closed again once it goes on
        ThreadPoolExecutor(1).submit(lambda: (hang.unlink(), session_on(gpu, watch, lost))).result(10)
    for one in (session, other):
        one.close()
    assert ended.empty()
    assert len(lost) == 4
    assert (gpu.broken, gpu.held()) == ([], {})


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
    flags = ("--gpu-hang-s", "0.5", "--front-ends", front_ends)
    with running(repository, *flags, env=env, on_gpu=True) as server:
        server.wait_ready()
        assert asked(server, 1)[1].status_code == 200
        hang.touch()
        _require_refusals(server)
        until(lambda: health(server, "ready") == 503, "not ready")
        until(lambda: health(server, "live") == 503, "not live")
        assert any("has not ended within 0.5 s" in line for line in server.log)
        assert server.stop() == 0


def _require_refusals(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for _, answer in pool.map(lambda seed: asked(server, seed), range(40))]
    assert {answer.status_code for answer in answers} == {503}
    assert "must be started anew" in answers[0].json()["error"]
