"""Where plans are run as a server runs them, from their signed folder: a GPU, or a simulated one in its place.

A simulated plan is the graph of the real one, run by ONNX Runtime; its plugins are what their definitions say.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

import engines.runtime.gpus as gpus_module
from engines.errors import DeviceLost, EngineError
from engines.handover import MANIFEST_FILE, PLAN_FILES
from engines.hardware import Gpu
from engines.manifest import Manifest, PlanFile, encode
from engines.plugins.gpu.operators import OPERATORS
from engines.runtime.driver import attached
from engines.runtime.gpus import Gpus
from engines.runtime.plans import Here
from engines.runtime.pycuda_driver import PyCudaDriver
from engines.runtime.tensorrt import TensorRtSession
from engines.signature import SIGNATURE_FILE, sign
from engines.targets.tensorrt_binary import lowerings
from engines.targets.tensorrt_options import PlanOptions
from engines.targets.tensorrt_process import build_apart
from tests.gpu.executors import of_gpu
from tests.gpu.golden import MOST_ROWS, Golden
from tests.gpu.machines import NoMachine
from tests.simulated import tensorrt as simulated
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu

__all__ = ["Place", "RealPlace", "SimulatedPlace"]

_KEY = b"of this installation"
_SM = 86
_VERSIONS = {"tensorrt": "11.4.0", "tensorrt-rtx": "1.7.1.116"}


class Place:
    """One GPU. `target` is the library that builds for it and runs there."""

    target: str
    is_real: bool

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Path, Manifest]] = {}

    modules: ClassVar[list[str]] = []
    """None is loaded that a session does not unload."""

    @contextlib.contextmanager
    def opened(self, made: Golden, *, instances: int = 1, graphs: bool = True) -> Iterator[TensorRtSession]:
        """A session of the model's plan; the GPU may not be lost meanwhile."""
        lost: list[DeviceLost] = []
        folder, manifest = self._of(made)
        session = Gpus(lost.append, folder / "kernels").open(
            folder, manifest, _KEY, devices=(0,), instances=instances, most_rows=MOST_ROWS, graphs=graphs
        )
        assert session is not None, "its plan is not read where it was built"
        with contextlib.closing(session):
            yield session
        assert lost == []

    def plan(self, made: Golden) -> Path:
        """The file of a plan, for other programs."""
        folder, manifest = self._of(made)
        return folder / manifest.plans[0].file

    def _of(self, made: Golden) -> tuple[Path, Manifest]:
        """Built once: TensorRT times its kernels, and another plan may have others."""
        if made.name not in self._known:
            self._known[made.name] = self._built(made)
        return self._known[made.name]

    def used_bytes(self) -> int:
        """Of the GPU's memory."""
        raise NotImplementedError

    def close(self) -> None:
        """See that all is as it should be."""
        raise NotImplementedError

    def _built(self, made: Golden) -> tuple[Path, Manifest]:
        raise NotImplementedError


class SimulatedPlace(Place):
    """Every rule of it was kept, and nothing is held, once it is closed."""

    is_real = False

    def __init__(self, target: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        super().__init__(folder)
        self.target = target
        self.gpu = SimulatedGpu(Faults(slowest_s=0))
        here = Here(_VERSIONS, (_SM,), 1)
        monkeypatch.setattr(gpus_module, "look_here", lambda: here)
        monkeypatch.setattr(gpus_module, "gpus", lambda: (Gpu("a GPU", "580", _SM),))
        monkeypatch.setattr(gpus_module, "PyCudaDriver", lambda number: self.gpu)
        monkeypatch.setattr(Gpus, "_register", lambda self, trt: None)
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, simulated)

    def close(self) -> None:
        assert (self.gpu.broken, self.gpu.held()) == ([], {})

    def used_bytes(self) -> int:
        return self.gpu.used_bytes()

    def _built(self, made: Golden) -> tuple[Path, Manifest]:
        data = simulated.plan_of(made.graph, made.profiles)
        return _written(self._folder, made, data, self.target, _VERSIONS[self.target], (_SM,))


class RealPlace(Place):
    """The first GPU. It has never met one."""

    is_real = True

    def __init__(self, folder: Path) -> None:
        """Raises NoMachine where there is none, or nothing that could run a plan on it."""
        super().__init__(folder)
        try:
            self._driver = PyCudaDriver(0)
        except EngineError as error:
            raise NoMachine(str(error)) from error
        self._sm = self._driver.sm()
        self.target = of_gpu(self._sm).name

    def close(self) -> None:
        """A session says itself what went wrong."""

    def used_bytes(self) -> int:
        with attached(self._driver):
            memory = self._driver.memory()
        return memory.total - memory.free

    def _built(self, made: Golden) -> tuple[Path, Manifest]:
        (lowering,) = lowerings(made.graph, (self._sm,))
        options = PlanOptions(profiles=made.profiles, sms=lowering.sms, has_plugins=lowering.has_plugins)
        data, built = build_apart(self.target, lowering.graph, options)
        return _written(self._folder, made, data, self.target, built.version, built.sms)


def _written(
    parent: Path, made: Golden, data: bytes, target: str, version: str, sms: tuple[int, ...]
) -> tuple[Path, Manifest]:
    """A plan's folder as a build leaves it, signed."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    plan = PlanFile(
        target=target, file=PLAN_FILES[target][0], sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data),
        precision=made.name, version=version, sms=sms, profiles=made.profiles,
        plugins=tuple(operator.name for operator in OPERATORS) if made.has_binary_layers else (),
    )  # fmt: skip
    manifest = msgspec.structs.replace(made.manifest, plans=(plan,))
    written = encode(manifest)
    (folder / MANIFEST_FILE).write_bytes(written)
    (folder / SIGNATURE_FILE).write_bytes(sign(written, _KEY))
    (folder / plan.file).write_bytes(data)
    return folder, manifest
