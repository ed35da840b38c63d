"""Random traffic, cancels, failures, unloads and a lost device through the whole server: every request is answered once
and rightly, no rule of the GPU is broken, and nothing of it is held in the end (`tests.simulated.serve` says so).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.wire import Client, in_flight, post
from tests.simulated.models import planned, scaled_sums
from tests.support.onnx_models import place
from tests.support.servers import ADMIN, Server, until

MODEL = scaled_sums()
NAMES = ("sums", "twice")
FIRST_FAILING = 200
"""The number of a run; there are fewer while both models are warmed up."""


class Asked(NamedTuple):
    """A request that was sent on a connection of its own."""

    x: np.ndarray
    client: Client

    def require_right(self, allowed: set[int]) -> int:
        with self.client:
            reply = self.client.read()
            assert reply.status in {200, *allowed}, reply
            if reply.status == 200:
                data = np.array(reply.json()["outputs"][0]["data"], np.float32).reshape(-1, 2)
                np.testing.assert_allclose(data, planned(MODEL, self.x), rtol=0, atol=5 * 32 * 2.0**-24)
        return reply.status


def started(folder: Path, machine: dict[str, Any] | None = None, *flags: str, **faults: Any) -> Server:
    """On one GPU with room for all, unless `machine` says something else."""
    for name in NAMES:
        place(folder / "models", name, MODEL.model, config="instances = 2\n" if name == "twice" else "")
    server = Server(
        folder / "models",
        *flags,
        on_gpu=True,
        env={
            "SIMULATED_GPU_ORDERLY": "1",
            "SIMULATED_GPU": json.dumps({"slowest_s": 0.0003, **faults}),
            "SIMULATED_MACHINE": json.dumps(machine or {}),
        },
    )
    server.wait_ready()
    return server


@pytest.fixture(scope="module", params=["one GPU", "two small GPUs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two by TensorRT-RTX, whose instances share scratch memory: there is room for three of theirs on each."""
    if request.param == "one GPU":
        made = started(tmp_path_factory.mktemp("whole"))
    else:
        machine = {"gpus": 2, "target": "tensorrt-rtx", "scratch_bytes": 1_000_000}
        made = started(tmp_path_factory.mktemp("small"), machine, most_bytes=3_500_000)
    yield made
    assert made.stop() == 0
    shares = any("in scratch memory that others use" in line for line in made.log)
    assert shares == (request.param != "one GPU")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Every fifth run fails once both models are warm, whose batches run without graphs."""
    runs = list(range(FIRST_FAILING, FIRST_FAILING + 20_000, 5))
    made = started(tmp_path_factory.mktemp("failing"), fail_runs=runs, refuse_captures=True)
    yield made
    assert made.stop() == 0


def ask(server: Server, model: str, rows: int, seed: int) -> Asked:
    x = np.random.default_rng(seed).standard_normal((rows, 4), dtype=np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    client = Client(server.port)
    client.send(post(model, json.dumps({"inputs": [tensor]}).encode()))
    return Asked(x, client)


def control(server: Server, model: str, what: str) -> int:
    url = f"{server.url}/v2/repository/models/{model}/{what}"
    return httpx.post(url, headers=ADMIN, timeout=60, verify=False).status_code


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 8)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("leave"), st.integers(0, 100)),
        st.tuples(st.sampled_from(["load", "unload"]), st.just(0)),
    ),
    max_size=40,
)


def run(server: Server, todo: list[tuple[str, int]]) -> tuple[list[Asked], bool]:
    """What was asked and still waits, and whether it may have met a model that was not there."""
    waiting: list[Asked] = []
    was_unloaded = False
    for number, (what, count) in enumerate(todo):
        name = NAMES[number % 2]
        if what == "ask":
            waiting.append(ask(server, name, count, number))
        elif what == "leave" and waiting:
            waiting.pop(count % len(waiting)).client.reset()
        elif what in ("load", "unload"):
            was_unloaded = was_unloaded or what == "unload"
            control(server, name, what)
    return waiting, was_unloaded


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=steps)
def test_every_request_is_answered_once_and_rightly(server: Server, todo: list[tuple[str, int]]) -> None:
    waiting, was_unloaded = run(server, todo)
    for asked in waiting:
        asked.require_right({404, 503} if was_unloaded else set())
    for name in NAMES:
        assert control(server, name, "load") == 200
        until(lambda name=name: in_flight(server, name) == 0, "nothing in flight")  # type: ignore[misc]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=steps.map(lambda todo: [step for step in todo if step[0] in ("ask", "leave")]))
def test_a_run_that_fails_costs_its_own_batch(failing: Server, todo: list[tuple[str, int]]) -> None:
    for asked in run(failing, todo)[0]:
        asked.require_right({500})
    for name in NAMES:
        until(lambda name=name: in_flight(failing, name) == 0, "nothing in flight")  # type: ignore[misc]


def test_the_failures_were_met(failing: Server) -> None:
    statuses = [ask(failing, NAMES[number % 2], 3, number).require_right({500}) for number in range(FIRST_FAILING)]
    assert 100 < statuses.count(200) < FIRST_FAILING


def test_a_server_that_is_stopped_under_load_answers_what_it_took_and_ends_in_order(tmp_path: Path) -> None:
    server = started(tmp_path)
    waiting = [ask(server, NAMES[number % 2], 1 + number % 8, number) for number in range(60)]
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(server.stop)
        for asked in waiting:
            with contextlib.suppress(ConnectionError, EOFError):  # it had not been taken
                asked.require_right({503})
        assert code.result(40) == 0


def lose(file: Path, calls: int) -> None:
    """The device, so many calls from now on."""
    file.with_suffix(".part").write_text(str(calls))
    file.with_suffix(".part").rename(file)


@settings(max_examples=6, deadline=None)
@given(todo=steps, at=st.integers(0, 30), calls=st.integers(0, 300), front_ends=st.sampled_from(["1", "2"]))
def test_a_device_that_is_lost_in_the_midst_of_it_leaves_nobody_waiting(
    todo: list[tuple[str, int]], at: int, calls: int, front_ends: str
) -> None:
    """Among requests, clients that leave, loads and unloads, which all say so or are right."""
    with tempfile.TemporaryDirectory() as name:
        lost = Path(name, "lost")
        server = started(Path(name), None, "--front-ends", front_ends, lost_file=str(lost))
        try:
            waiting, _ = run(server, todo[:at])
            lose(lost, calls)
            waiting += run(server, todo[at:])[0]
            for asked in waiting:
                asked.require_right({404, 503})
            until(lambda: 200 not in _statuses(server), "all are told")
            until(lambda: not server.alive(), "not live")
        finally:
            assert server.stop() == 0


def _statuses(server: Server) -> set[int]:
    """Of a request to each model, which is loaded again where it was not: that, too, uses the device."""
    for model in NAMES:
        control(server, model, "load")
    return {ask(server, model, 2, 0).require_right({404, 503}) for model in NAMES}
