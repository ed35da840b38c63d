"""From a plan's folder to a session on the GPUs that are here: which plan, on which of them, and who signed it."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import engines.runtime.gpus as module
from engines.errors import DeviceLost, EngineError, PlanInvalid
from engines.handover import MANIFEST_FILE
from engines.hardware import Gpu
from engines.manifest import Manifest, PlanFile, encode
from engines.runtime.gpus import Gpus
from engines.runtime.plans import Here
from engines.signature import SIGNATURE_FILE, sign
from tests.simulated import tensorrt as trt
from tests.simulated.gpu import SimulatedGpu
from tests.simulated.models import planned, scaled_sums
from tests.support.servers import until

MODEL = scaled_sums()
KEY = b"of this installation"
VERSIONS = {"tensorrt": "11.4.0", "tensorrt-rtx": "1.7.1.116"}


class Machine:
    """So many simulated GPUs of SM86, with these libraries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int, versions: dict[str, str] = VERSIONS) -> None:
        self.gpus = [SimulatedGpu() for _ in range(gpus)]
        self.registered = 0
        here = Here(versions, (86,) if gpus else (), gpus)
        monkeypatch.setattr(module, "look_here", lambda: here)
        monkeypatch.setattr(module, "gpus", lambda: (Gpu("a GPU", "580", 86),) * gpus)
        monkeypatch.setattr(module, "PyCudaDriver", lambda number: self.gpus[number])
        monkeypatch.setattr(Gpus, "_register", self._register)
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, trt)

    def _register(self, library: Any) -> None:
        self.registered += 1

    @property
    def used(self) -> list[bool]:
        return ["copy_in" in gpu.calls for gpu in self.gpus]

    def assert_sound(self) -> None:
        assert all((gpu.broken, gpu.held()) == ([], {}) for gpu in self.gpus)


def plan_for(target: str, **keys: Any) -> PlanFile:
    made = msgspec.structs.replace(MODEL.plan, target=target, version=VERSIONS[target], file=f"{target}.plan", **keys)
    return msgspec.structs.replace(made, sha256=hashlib.sha256(MODEL.data).hexdigest())


def folder_with(folder: Path, *plans: PlanFile, key: bytes = KEY) -> Manifest:
    manifest = msgspec.structs.replace(MODEL.manifest, plans=plans)
    data = encode(manifest)
    (folder / MANIFEST_FILE).write_bytes(data)
    (folder / SIGNATURE_FILE).write_bytes(sign(data, key))
    for plan in plans:
        (folder / plan.file).write_bytes(MODEL.data)
    return manifest


def opened(folder: Path, manifest: Manifest, **keys: Any) -> Any:
    return Gpus(lambda error: None, folder / "kernels").open(folder, manifest, KEY, most_rows=8, **keys)


def serve(session: Any) -> None:
    for slot in session.slots:
        x = np.ones((3, 4), np.float32)
        slot.bind({"x": x.shape})["x"][:] = x
        assert slot.run() is None
        np.testing.assert_allclose(slot.outputs()["y"], planned(MODEL, x), rtol=0, atol=1e-5)
    session.close()


@pytest.mark.parametrize(
    ("devices", "instances", "slots", "used"),
    [((), None, 4, [True, True]), ((1,), None, 2, [False, True]), ((0, 1), 2, 8, [True, True])],
)
def test_all_gpus_are_used_or_those_that_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: tuple[int, ...], instances: int | None, slots: int,
    used: list[bool],
) -> None:  # fmt: skip
    machine = Machine(monkeypatch, 2)
    session = opened(tmp_path, folder_with(tmp_path, plan_for("tensorrt")), devices=devices, instances=instances)
    assert len(session.slots) == slots
    serve(session)
    assert machine.used == used
    machine.assert_sound()


def test_tensorrt_goes_before_tensorrt_rtx_and_what_does_not_fit_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, 1)
    both = folder_with(tmp_path, plan_for("tensorrt-rtx"), plan_for("tensorrt"))
    serve(opened(tmp_path, both))
    assert not (tmp_path / "kernels").exists(), "TensorRT compiles nothing here"
    newer = folder_with(tmp_path, plan_for("tensorrt-rtx"), plan_for("tensorrt", sms=(90,)))
    serve(opened(tmp_path, newer))
    assert list((tmp_path / "kernels" / "tensorrt-rtx").iterdir())
    machine.assert_sound()


def test_each_kind_of_gpu_has_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, 3)
    monkeypatch.setattr(module, "gpus", lambda: [Gpu(name, "580", 86) for name in ("one", "another", "one")])
    manifest = folder_with(tmp_path, plan_for("tensorrt-rtx"))
    serve(opened(tmp_path, manifest))
    compiled = [gpu.compiled for gpu in machine.gpus]
    assert compiled == [4, 4, 0], "the third is like the first"
    serve(opened(tmp_path, manifest))
    assert [gpu.compiled for gpu in machine.gpus] == compiled, "they were kept"
    machine.assert_sound()


def test_plugins_are_registered_once_and_by_the_first_plan_that_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, 1)
    gpus = Gpus(lambda error: None, tmp_path / "kernels")
    counts = []
    for plugins in ((), ("BinaryConv2d",), ("BinaryGemm",)):
        manifest = folder_with(tmp_path, plan_for("tensorrt", plugins=plugins))
        session = gpus.open(tmp_path, manifest, KEY, most_rows=8)
        assert session is not None
        serve(session)
        counts.append(machine.registered)
    assert counts == [0, 1, 1]


@pytest.mark.parametrize("case", ["no GPU", "no plan", "another's signature", "no library", "another version"])
def test_without_a_plan_that_fits_there_is_no_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.INFO)
    versions = {"no library": {}, "another version": {"tensorrt": "12.0"}}.get(case, VERSIONS)
    Machine(monkeypatch, 0 if case == "no GPU" else 1, versions)
    key = b"somebody else's" if case == "another's signature" else KEY
    manifest = folder_with(tmp_path, *(() if case == "no plan" else (plan_for("tensorrt"),)), key=key)
    assert opened(tmp_path, manifest) is None
    assert ("a plan is not used" in caplog.text) == (case in ("another's signature", "no library", "another version"))


def test_a_gpu_that_nothing_can_use_is_a_reason_for_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Machine(monkeypatch, 1)

    def missing(number: int) -> SimulatedGpu:
        raise EngineError("no PyCUDA")

    monkeypatch.setattr(module, "PyCudaDriver", missing)
    with pytest.raises(PlanInvalid, match="no PyCUDA"):
        opened(tmp_path, folder_with(tmp_path, plan_for("tensorrt")))


def test_a_device_that_is_not_here_and_a_plan_that_was_not_made_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Machine(monkeypatch, 1)
    with pytest.raises(PlanInvalid, match="there is no GPU 1: 1 are here"):
        opened(tmp_path, folder_with(tmp_path, plan_for("tensorrt")), devices=(0, 1))
    with pytest.raises(PlanInvalid, match="it has no plan for a GPU; compile it for one of targets"):
        opened(tmp_path, folder_with(tmp_path), devices=(0,))


def test_a_plan_need_fit_only_the_devices_that_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, 2)
    monkeypatch.setattr(module, "look_here", lambda: Here(VERSIONS, (86, 90), 2))
    monkeypatch.setattr(module, "gpus", lambda: (Gpu("old", "580", 86), Gpu("new", "580", 90)))
    manifest = folder_with(tmp_path, plan_for("tensorrt"))
    assert opened(tmp_path, manifest) is None
    serve(opened(tmp_path, manifest, devices=(0,)))
    assert machine.used == [True, False]
    with pytest.raises(PlanInvalid, match="tensorrt: it was built for SM86, and here is SM90"):
        opened(tmp_path, manifest, devices=(1,))
    machine.assert_sound()


def test_sessions_of_a_gpu_that_hangs_end_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As those of one GPU share who looks, and those of another do not."""
    machine, hang = Machine(monkeypatch, 2), tmp_path / "hang"
    machine.gpus[0].faults.hang_file = str(hang)
    lost: list[DeviceLost] = []
    gpus = Gpus(lost.append, tmp_path / "kernels", hang_s=60)
    manifest = folder_with(tmp_path, plan_for("tensorrt"))
    first, second, other = (gpus.open(tmp_path, manifest, KEY, most_rows=8, devices=(number,)) for number in (0, 0, 1))
    assert first is not None
    assert second is not None
    hang.touch()
    for watch in gpus._watches.values():
        watch._hang_s, watch._every_s = 0.2, 0.02
    for session in (first, second):
        slot = session.slots[0]
        slot.bind({"x": (1, 4)})["x"][:] = 1
        assert slot.run() is lost[0]
    assert len(lost) == 2
    serve(other)
    hang.unlink()
    for session in (first, second):
        session.close()
    until(lambda: not machine.gpus[0].held(), "given back, beside")
    machine.assert_sound()
