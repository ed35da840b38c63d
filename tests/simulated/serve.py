"""`python -m tests.simulated.serve serve ...`: the server, with simulated GPUs that have a plan of every model.

The plan is made of the model's own graph when it is loaded, by nobody's builder. What is not of TensorRT (strings, a
guard) has none, and the CPU answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

import app.closing
import app.plans
import app.tune.server
import engines.runtime.gpus as module
from app.cli import main
from app.tune.child import main as child
from engines.errors import PlanInvalid
from engines.hardware import Gpu
from engines.manifest import Manifest, PlanFile
from engines.passes.guards import with_guards
from engines.request import BuildRequest
from engines.runtime.gpus import Gpus
from engines.runtime.plans import Here
from engines.runtime.tensorrt import TensorRtSession
from engines.spec import Target
from engines.tensor import DYNAMIC, ShapeRange
from tests.simulated.faults import Faults
from tests.simulated.gpu import SimulatedGpu
from tests.support.known_plans import known_plans

__all__ = ["SimulatedGpus", "run", "simulated"]

_SETTING = "SIMULATED_GPU"
"""JSON: the fields of `Faults`."""
_MACHINE = "SIMULATED_MACHINE"
"""JSON: the fields of `Machine` but its faults."""
_ORDERLY = "SIMULATED_GPU_ORDERLY"
"""Where it is set, the server has to give all back: one that is told to leave at once does not."""
_LOOKED_AT = ("outside its table", "beyond 32 bits", "divides by zero", "the engine rounds there")
"""What guards count that have nothing to do with sizes (`engines.passes.guards`)."""
_requests: dict[str, BuildRequest] = {}
_gpus: list[SimulatedGpu] = []


class Machine(msgspec.Struct):
    """So many GPUs, and what their plans are."""

    gpus: int = 1
    target: Target = "tensorrt"
    scratch_bytes: int = 1024
    most_rows: int = 0
    """That a plan is made for, if fewer than are asked for."""
    faults: Faults = msgspec.field(default_factory=lambda: Faults(slowest_s=0.00002))


def _machine() -> Machine:
    made = msgspec.json.decode(os.environ.get(_MACHINE, "{}"), type=Machine)
    if given := os.environ.get(_SETTING, ""):
        made.faults = msgspec.json.decode(given, type=Faults)
    return made


def _here() -> Here:
    machine = _machine()
    return Here({machine.target: "11.4.0"}, (86,), machine.gpus)


class SimulatedGpus(Gpus):
    """It finds simulated GPUs, and a plan for them of every model."""

    def __init__(self, lost: Any, folder: Path, hang_s: float) -> None:
        super().__init__(lost, folder, hang_s)
        self._machine = _machine()
        self._asked = threading.local()
        self._simulated = [SimulatedGpu(self._machine.faults) for _ in range(self._machine.gpus)]
        for gpu in self._simulated:
            gpu.broken = _Told()
        _gpus.extend(self._simulated)

    def open(self, *where: Any, most_rows: int = 0, **more: Any) -> TensorRtSession | None:
        self._asked.most_rows = most_rows
        return super().open(*where, most_rows=most_rows, **more)

    def _plan(
        self, folder: Path, manifest: Manifest, key: bytes | None, here: Here, devices: Sequence[int]
    ) -> tuple[PlanFile, bytes]:
        from tests.simulated import tensorrt as trt  # it has threads, which the supervisor of front ends must not have

        rows = (self._asked.most_rows or manifest.max_batch or 1) if manifest.proof.batchable else 1
        rows = min(rows, self._machine.most_rows or rows)
        profiles = _profiles(manifest, rows)
        try:
            graph, guards = with_guards(_graph(_requests[manifest.key], manifest), on_gpu=True)
            if not all(text.endswith(_LOOKED_AT) for text in guards):
                raise PlanInvalid(
                    "sizes may be computed from values, which TensorRT tells and the simulated one cannot"
                )
            data = trt.plan_of(graph, profiles, self._machine.scratch_bytes)
        except PlanInvalid:
            raise
        except Exception as error:
            raise PlanInvalid(f"no plan is made of it: {error}") from error
        plan = PlanFile(
            target=self._machine.target, file="plan", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data),
            precision="fp32", version="11.4.0", sms=(86,), profiles=profiles,
            guards=tuple(text if text in manifest.guards else "" for text in guards),  # the others are false alarms
        )  # fmt: skip
        return plan, data

    def _driver(self, number: int) -> Any:
        return self._simulated[number]

    def _library(self, plan: PlanFile) -> Any:
        from tests.simulated import tensorrt as trt

        return trt


class _Told(list[str]):
    """What a test looks for in the log."""

    def append(self, rule: str) -> None:
        super().append(rule)
        sys.stderr.write(f"SIMULATED GPU: {rule}\n")
        sys.stderr.flush()


def _graph(request: BuildRequest, manifest: Manifest) -> Any:
    from engines.canonical import canonical
    from engines.frontend import onnx as frontend
    from engines.passes.dynamic_batch import with_batch_axes

    sent, _, _ = frontend.read(request.source, request.read_spec())
    model, _ = canonical(sent)
    axes = {spec.name: spec.batch_axis for spec in manifest.inputs if spec.batch_axis is not None}
    made = with_batch_axes(model, axes) if axes else model
    for value, spec in ((v, s) for v in made.graph.input for s in manifest.inputs if v.name == s.name):
        for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if size != DYNAMIC:
                dim.dim_value = size
    return made


def _profiles(manifest: Manifest, rows: int) -> tuple[dict[str, ShapeRange], ...]:
    """One, as `engines.gpu_plans` makes it."""
    found: dict[str, ShapeRange] = {}
    for spec in manifest.inputs:
        if DYNAMIC not in spec.shape:
            continue
        sample = manifest.sample_shapes[spec.name]
        sizes = [
            (1, rows, rows) if at == spec.batch_axis
            else (max(1, size // 2), size, 4 * size) if dim == DYNAMIC else (size, size, size)
            for at, (dim, size) in enumerate(zip(spec.shape, sample, strict=True))
        ]  # fmt: skip
        found[spec.name] = tuple(tuple(one[k] for one in sizes) for k in range(3))  # type: ignore[assignment]
    return (found,) if found else ()


async def _open(self: app.plans.Plans, request: BuildRequest, manifest: Manifest, *more: Any) -> Any:
    _requests[manifest.key] = request
    return await _opened(self, request, manifest, *more)


_opened = app.plans.Plans.open


@contextlib.contextmanager
def simulated() -> Iterator[list[SimulatedGpu]]:
    """Servers of this process are on simulated GPUs as long as the block lasts; the list is of all of them."""
    with (
        known_plans(),
        patch.object(app.plans, "Gpus", SimulatedGpus),
        patch.object(app.plans.Plans, "open", _open),
        patch.multiple(module, look_here=_here, gpus=lambda: (Gpu("simulated", "580", 86),) * _machine().gpus),
    ):
        yield _gpus


def run(command: Callable[[], None]) -> None:
    """A server's command, on simulated GPUs."""
    try:
        with simulated():
            command()
    finally:
        for gpu in _gpus:
            if os.environ.get(_ORDERLY) and not gpu.is_lost and gpu.held():
                gpu.broken.append(f"it still holds {gpu.held()}")


if __name__ == "__main__":
    app.tune.server.CHILD = "tests.simulated.serve"  # of trials, too
    app.closing._LONGEST_S = 20 if os.environ.get(_ORDERLY) else app.closing._LONGEST_S  # the machine may be busy
    run(child if sys.argv[1].isdigit() else main)
