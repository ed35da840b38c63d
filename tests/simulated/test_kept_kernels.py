"""TensorRT-RTX compiles its kernels on the GPU: while a model is loaded, and not again when it is loaded anew."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from app.plans import Plans
from app.settings import Settings
from engines.errors import OutOfMemory
from engines.hardware import Gpu
from engines.manifest import Manifest, PlanFile
from engines.runtime.driver import Memory
from engines.runtime.kept_kernels import KeptKernels, kernels_file, sweep_kernels
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt import TensorRtSession
from engines.tensor import TensorSpec
from tests.simulated import tensorrt as trt
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import Planned, planned, scaled_sums

MODEL = scaled_sums()
PLAN = msgspec.structs.replace(MODEL.plan, target="tensorrt-rtx")
BUCKETS = 4


def _of_any_width() -> Planned:
    """y = -x, of rows of 1 to 16."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negated", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    specs = [TensorSpec(name, "FP32", (-1, -1), 0) for name in "xy"]
    return Planned(model, specs[:1], specs[1:], [{"x": ((1, 1), (4, 4), (8, 16))}], {"x": (1, 4)})


OPEN = _of_any_width()
OPEN_PLAN = msgspec.structs.replace(OPEN.plan, target="tensorrt-rtx")
KEY = b"a key"


def of(kept: KeptKernels | None) -> dict[int, KeptKernels]:
    return {} if kept is None else {0: kept}


def compiled_by(kept: KeptKernels | None, *, ask: bool = False) -> int:
    """How many kernels a session compiles until it has served."""
    gpu = SimulatedGpu()
    session = TensorRtSession(trt, {0: gpu}, MODEL.data, PLAN, MODEL.manifest, most_rows=8, instances=2, kept=of(kept))
    before = gpu.compiled
    for count in (1, 3, 8) if ask else ():
        x = np.random.default_rng(count).standard_normal((count, 4), dtype=np.float32)
        for slot in session.slots:
            slot.bind({"x": x.shape})["x"][:] = x
            assert slot.run() is None
            np.testing.assert_allclose(slot.outputs()["y"], planned(MODEL, x), rtol=0, atol=1e-5)
    assert gpu.compiled == before, "a request has waited for a compiler"
    assert gpu.replays == 0, "it makes its graphs by itself"
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})
    return gpu.compiled


def test_all_is_compiled_while_it_is_loaded_and_kept_for_the_next_time(tmp_path: Path) -> None:
    kept = KeptKernels(tmp_path / "some" / "where", KEY)
    assert compiled_by(kept, ask=True) == BUCKETS
    assert compiled_by(kept, ask=True) == 0
    assert compiled_by(None) == BUCKETS


@pytest.mark.parametrize("damage", ["another key", "a flipped bit", "cut", "empty", "a folder"])
def test_what_is_not_ours_is_not_read_and_made_anew(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "kernels"
    assert compiled_by(KeptKernels(file, KEY)) == BUCKETS
    content = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage != "another key":
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes({"a flipped bit": flipped, "cut": content[:-1], "empty": b""}[damage])
    kept = KeptKernels(file, b"another" if damage == "another key" else KEY)
    assert kept.read() == b""
    assert compiled_by(kept) == BUCKETS
    assert compiled_by(kept) == (BUCKETS if damage == "a folder" else 0)


def test_kernels_of_another_driver_are_refused_by_the_library_and_made_anew(tmp_path: Path) -> None:
    kept = KeptKernels(tmp_path / "kernels", KEY)
    kept.write(b"of something else")
    assert compiled_by(kept) == BUCKETS
    assert compiled_by(kept) == 0


def test_what_is_compiled_while_it_serves_is_kept_when_it_is_closed(tmp_path: Path) -> None:
    """Of shapes that nobody could know before."""
    kept = KeptKernels(tmp_path / "kernels", KEY)
    for first in (True, False):
        gpu = SimulatedGpu()
        session = TensorRtSession(trt, {0: gpu}, OPEN.data, OPEN_PLAN, OPEN.manifest, most_rows=8, kept=of(kept))
        assert gpu.compiled == 0
        for width in (3, 5):
            slot = session.slots[0]
            slot.bind({"x": (1, width)})["x"][:] = 1
            assert slot.run() is None
        assert gpu.compiled == (2 if first else 0)
        session.close()


def negated(session: TensorRtSession, at: int, rows: int, width: int) -> BaseException | None:
    """A batch on one of the slots, whose answer is right."""
    x, slot = np.random.default_rng(rows * width).standard_normal((rows, width), dtype=np.float32), session.slots[at]
    slot.bind({"x": x.shape})["x"][:] = x
    error = slot.run()
    if error is None:
        np.testing.assert_array_equal(slot.outputs()["y"], -x)
    return error


@pytest.mark.parametrize("shares", [False, True])
def test_where_shapes_are_many_all_run_on_kernels_for_any(monkeypatch: pytest.MonkeyPatch, *, shares: bool) -> None:
    """What was compiled would be kept for each."""
    gpu = SimulatedGpu()
    if shares:
        monkeypatch.setattr(gpu, "memory", lambda: Memory(0, 2**34))
    session = TensorRtSession(
        trt, {0: gpu}, OPEN.data, OPEN_PLAN, OPEN.manifest, most_rows=8, instances=2,
        scratch={0: Scratch(gpu)} if shares else {},
    )  # fmt: skip
    shapes = [(rows, width) for rows in range(1, 9) for width in range(1, 17)]
    for number, (rows, width) in enumerate(shapes):
        assert negated(session, number % 4, rows, width) is None
        assert gpu.compiled == min(number + 1, 64)
    assert negated(session, 0, 1, 1) is None
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})


def test_a_context_that_could_not_be_made_anew_is_made_for_the_next_batch() -> None:
    faults = Faults()
    gpu = SimulatedGpu(faults)
    session = TensorRtSession(trt, {0: gpu}, OPEN.data, OPEN_PLAN, OPEN.manifest, most_rows=8)
    for width in range(1, 17):
        for rows in range(1, 5):
            assert negated(session, 0, rows, width) is None
    faults.full_from = gpu.allocations + 1
    for _ in range(2):
        assert isinstance(negated(session, 1, 8, 8), OutOfMemory)
    faults.full_from = 0
    assert negated(session, 0, 8, 8) is None
    session.close()
    assert (gpu.broken, gpu.held()) == ([], {})


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(("made", "plan", "compiled"), [(MODEL, PLAN, "EAGER"), (OPEN, OPEN_PLAN, "LAZY")])
def test_how_contexts_run_is_said_to_the_library(
    monkeypatch: pytest.MonkeyPatch, graphs: bool, made: Planned, plan: PlanFile, compiled: str
) -> None:
    configs: list[trt.IRuntimeConfig] = []

    def configured(engine: trt.ICudaEngine) -> trt.IRuntimeConfig:
        configs.append(trt.IRuntimeConfig())
        return configs[-1]

    monkeypatch.setattr(trt.ICudaEngine, "create_runtime_config", configured)
    TensorRtSession(trt, {0: SimulatedGpu()}, made.data, plan, made.manifest, graphs=graphs).close()
    (config,) = configs
    assert config.cuda_graph_strategy is trt.CudaGraphStrategy["WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED"]
    assert config.dynamic_shapes_kernel_specialization_strategy.name == compiled


def plan_named(name: str) -> PlanFile:
    return msgspec.structs.replace(PLAN, sha256=name * 64)


def test_kernels_are_of_a_plan_a_kind_of_gpu_and_a_driver(tmp_path: Path) -> None:
    here = Gpu("a GPU", "580", 86)
    others = [
        (PLAN, here._replace(name="another")), (PLAN, here._replace(driver="590")), (plan_named("1"), here),
        (msgspec.structs.replace(PLAN, target="tensorrt"), here),
    ]  # fmt: skip
    kinds = [(PLAN, here), (PLAN, here), *others]
    assert len({kernels_file(tmp_path, plan, gpu, 0) for plan, gpu in kinds}) == 5
    for number, (plan, gpu) in enumerate(kinds):
        KeptKernels(kernels_file(tmp_path, plan, gpu, number), KEY).write(b"of %d" % number)
    read = [KeptKernels(kernels_file(tmp_path, plan, gpu, 7), KEY).read() for plan, gpu in kinds]
    assert read == [b"of 0", b"of 0", *(b"of %d" % number for number in range(2, 6))], "those of a like one"
    assert KeptKernels(kernels_file(tmp_path, PLAN, here, 1), KEY).read() == b"of 1", "its own before others'"
    assert KeptKernels(kernels_file(tmp_path, plan_named("2"), here, 1), KEY).read() == b""


def test_kernels_of_plans_that_are_gone_are_swept(tmp_path: Path) -> None:
    """And what a write has left that was killed; nothing that is new, and nothing else that lies there."""
    gpu, hour_s = Gpu("a GPU", "580", 86), 3600.0
    kept, gone, new = (kernels_file(tmp_path, plan_named(name), gpu, 0) for name in "123")
    half, cubins = kept.with_name(f"{kept.name}.abc"), tmp_path / "plugins" / "some.cubin"
    for file in (kept, gone, new, half, cubins):
        file.parent.mkdir(exist_ok=True)
        KeptKernels(file, KEY).write(b"kernels")
        os.utime(file, (1000, 1000 + (hour_s if file == new else 0)))

    def manifests() -> list[Manifest]:
        return [msgspec.structs.replace(MODEL.manifest, plans=(plan_named("1"),))]

    assert sweep_kernels(tmp_path, ["tensorrt-rtx"], manifests, hour_s, 1001 + hour_s) == 2
    assert [file.exists() for file in (kept, gone, new, half, cubins)] == [True, False, True, False, True]
    assert sweep_kernels(tmp_path / "nowhere", ["tensorrt-rtx"], manifests, hour_s, 1001 + hour_s) == 0


def test_a_server_sweeps_them_when_it_starts(tmp_path: Path) -> None:
    made = Plans(Settings(repository=tmp_path, cache=tmp_path / "cache"))
    file = kernels_file(tmp_path / "cache" / ".kernels", PLAN, Gpu("a GPU", "580", 86), 0)
    KeptKernels(file, KEY).write(b"kernels")
    os.utime(file, (1000, 1000))
    asyncio.run(made.sweep())
    assert not file.exists()
