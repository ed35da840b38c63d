"""Values that a GPU would answer wrongly are refused, and nobody else is: no row that waits in a buffer counts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import ValuesRefused
from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.tensorrt_slot import GpuSlot
from engines.tensor import TensorSpec
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned
from tests.simulated.planting import plant
from tests.support.onnx_models import place
from tests.support.servers import Server, running

TABLE = np.arange(100, dtype=np.float32)


def looked_up() -> onnx.ModelProto:
    """y [n, 3] = 2 * table[t + 1]: an index that is computed, so that it cannot be checked when it arrives."""
    nodes = [
        helper.make_node("Add", ["t", "one"], ["i"], "next"), helper.make_node("Gather", ["table", "i"], ["e"], "look"),
        helper.make_node("Add", ["e", "e"], ["y"], "twice"),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(np.array(1, np.int32), "one"), numpy_helper.from_array(TABLE, "table")]
    t = helper.make_tensor_value_info("t", TensorProto.INT32, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "looked_up", [t], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


MODEL = Planned(
    looked_up(), [TensorSpec("t", "INT32", (-1, 3), 0)], [TensorSpec("y", "FP32", (-1, 3), 0)],
    [{"t": ((1, 3), (8, 3), (8, 3))}], {"t": (1, 3)},
)  # fmt: skip


def rows(count: int, *, bad: bool = False) -> np.ndarray:
    made = np.random.default_rng(count).integers(0, 99, (count, 3), np.int32)
    made[-1, 1] = 99 if bad else made[-1, 1]
    return made


def answered(slot: GpuSlot, t: np.ndarray) -> BaseException | None:
    slot.bind({"t": t.shape})["t"][:] = t
    error = slot.run()
    if error is None:
        np.testing.assert_array_equal(slot.outputs()["y"], 2 * TABLE[t + 1])
    return error


@pytest.fixture(params=[True, False], ids=["graphs", "no graphs"])
def slot(gpu: SimulatedGpu, request: pytest.FixtureRequest) -> Iterator[GpuSlot]:
    session = TensorRtSession(
        trt, {0: gpu}, MODEL.data, MODEL.plan, MODEL.manifest, most_rows=8, graphs=request.param
    )  # fmt: skip
    yield session.slots[0]
    session.close()


def test_a_batch_with_a_value_outside_its_table_is_refused_and_the_next_is_not(slot: GpuSlot) -> None:
    """Five rows run as eight: the others hold what was refused before."""
    for count in (8, 5, 8, 3, 1):
        error = answered(slot, rows(8, bad=True))
        assert isinstance(error, ValuesRefused)
        assert "Gather 'look' looks up an index outside its table" in str(error)
        assert answered(slot, rows(count)) is None


def test_a_planted_fault_in_it_is_found(monkeypatch: pytest.MonkeyPatch, slot: GpuSlot) -> None:
    plant(monkeypatch, GpuSlot, "_filled", "rows[batch.rows :] = rows[:1]", "pass")
    assert answered(slot, rows(8, bad=True)) is not None
    assert isinstance(answered(slot, rows(5)), ValuesRefused), "a row is looked at that nobody asked for"


def test_a_server_refuses_the_request_alone(tmp_path: Path) -> None:
    place(tmp_path / "models", "looked_up", looked_up(), config="[batching]\nmax_queue_delay_us = 2000\n")
    with running(tmp_path / "models", on_gpu=True) as server:
        server.wait_ready()
        config = httpx.get(f"{server.url}/v2/models/looked_up/config", timeout=10, verify=False).json()
        assert config["backend"] == "tensorrt"
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda at: asked(server, 1 + at % 5, bad=at % 7 == 0), range(100)))
    assert [status for status, _ in found] == [400 if at % 7 == 0 else 200 for at in range(100)]
    assert all("outside its table" in text for status, text in found if status == 400)


def asked(server: Server, count: int, *, bad: bool) -> tuple[int, str]:
    t = rows(count, bad=bad)
    answer = server.infer("looked_up", {"t": ("INT32", t)})
    if answer.status_code == 200:
        data = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(t.shape)
        np.testing.assert_array_equal(data, 2 * TABLE[t + 1])
    return answer.status_code, answer.text
