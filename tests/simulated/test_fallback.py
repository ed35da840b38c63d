"""Sizes that a plan was not built for are answered by the CPU's engine, which is imported when they come."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper

from engines.errors import EngineFailed, PlanInvalid
from engines.runtime.fallback import WithCpu
from engines.runtime.tensorrt import TensorRtSession
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums
from tests.support.fakes import HeldSession
from tests.support.onnx_models import place
from tests.support.servers import Server, running

MODEL = scaled_sums()


class Cpu:
    """Loads sessions whose slots answer at once, with twice what is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.loaded: list[HeldSession] = []
        self._error = error

    def __call__(self) -> HeldSession:
        if self._error is not None:
            raise self._error
        self.loaded.append(HeldSession(function=lambda inputs: {"y": 2 * inputs["x"]}))
        return self.loaded[-1]


def opened(gpu: SimulatedGpu, cpu: Cpu) -> WithCpu:
    on_gpu = TensorRtSession(trt, {0: gpu}, MODEL.data, MODEL.plan, MODEL.manifest, most_rows=8)
    return WithCpu(on_gpu, cpu, MODEL.manifest.inputs)


def test_what_is_beyond_the_plan_runs_on_the_cpu_and_the_rest_on_the_gpu(gpu: SimulatedGpu) -> None:
    cpu = Cpu()
    session = opened(gpu, cpu)
    for count in (3, 9, 8, 20, 1):
        x = np.random.default_rng(count).standard_normal((count, 4), dtype=np.float32)
        for slot in session.slots:
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            expected = planned(MODEL, x) if count <= 8 else 2 * x
            np.testing.assert_allclose(slot.outputs()["y"], expected, rtol=0, atol=1e-5)
        assert len(cpu.loaded) == (count != 3), "it is imported once, when it is needed"
    session.close()
    assert cpu.loaded[0].closed


def test_an_engine_that_cannot_be_imported_costs_its_own_batch(gpu: SimulatedGpu) -> None:
    session = opened(gpu, Cpu(PlanInvalid("no such file")))
    slot = session.slots[0]
    slot.bind({"x": (9, 4)})["x"][:] = 1
    error = slot.run()
    assert isinstance(error, (PlanInvalid, EngineFailed))
    assert "no such file" in str(error)
    slot.bind({"x": (1, 4)})["x"][:] = 1
    assert slot.run() is None
    session.close()


def doubled() -> onnx.ModelProto:
    """y [n, m] = 2 x, of any width."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubled", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_server_answers_rows_of_all_widths(tmp_path: Path) -> None:
    place(tmp_path / "models", "doubled", doubled())
    server = Server(tmp_path / "models", on_gpu=True, env={"SIMULATED_GPU": json.dumps({})})
    try:
        server.wait_ready()
        for width in (1, 3, 200, 10_000, 2):
            x = np.random.default_rng(width).standard_normal((3, width), dtype=np.float32)
            answer = server.infer("doubled", {"x": ("FP32", x)})
            assert answer.status_code == 200, answer.text
            found = np.array(answer.json()["outputs"][0]["data"], np.float32)
            np.testing.assert_array_equal(found.reshape(x.shape), x + x)
    finally:
        server.stop()


def test_a_server_forms_no_batch_that_its_plan_does_not_take(tmp_path: Path) -> None:
    """It would run on the CPU; only a request that is larger by itself does, and the index says so."""
    place(
        tmp_path / "models", "sums", MODEL.model, config="[batching]\nmax_batch_size = 32\nmax_queue_delay_us = 2000\n"
    )
    env = {"SIMULATED_MACHINE": json.dumps({"most_rows": 8})}
    with running(tmp_path / "models", env=env, on_gpu=True) as server:
        server.wait_ready()
        (model,) = server.index().values()
        assert "its plan for the GPU is for 8 rows at most" in model["reason"]
        asked = [3] * 60 + [20]
        with ThreadPoolExecutor(16) as pool:
            for x, answer in pool.map(lambda at: _asked(server, at, asked[at]), range(len(asked))):
                assert answer.status_code == 200, answer.text
                found = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(-1, 2)
                np.testing.assert_allclose(found, planned(MODEL, x), rtol=0, atol=1e-5)
        metrics = httpx.get(f"{server.url}/metrics", timeout=10, verify=False).text
    assert _batches(metrics, "+Inf") - _batches(metrics, "8") == 1, "what is larger by itself"
    assert _batches(metrics, "+Inf") < len(asked), "some were joined"


def _asked(server: Server, seed: int, rows: int) -> tuple[np.ndarray, httpx.Response]:
    x = np.random.default_rng(seed).standard_normal((rows, 4), dtype=np.float32)
    return x, server.infer("sums", {"x": ("FP32", x)})


def _batches(metrics: str, at_most: str) -> int:
    """Of so many rows."""
    found = re.search(rf'bitserve_batch_rows_bucket{{[^}}]*le="{re.escape(at_most)}"[^}}]*}} (\d+)', metrics)
    assert found is not None, metrics
    return int(found[1])
