"""TensorRT and TensorRT-RTX on GPUs: a plan becomes a session of instances, each with a context and streams of its own.

It has run on simulated GPUs alone (tests/simulated); what a real one does with it was never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

from engines.errors import DeviceLost
from engines.manifest import Manifest, PlanFile
from engines.runtime.buckets import Batches
from engines.runtime.driver import Driver, attached, cleared
from engines.runtime.flights import Watch
from engines.runtime.kept_kernels import KeptKernels
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt_engine import TensorRtEngine
from engines.runtime.tensorrt_instance import TensorRtInstance
from engines.runtime.tensorrt_slot import GpuSlot

__all__ = ["TensorRtSession"]


class TensorRtSession:
    """`engines.runtime.session.Session` of some GPUs: `instances` of them on each, whose weights they share."""

    is_on_gpu = True
    inline_rows = 0
    inline_slot = None

    def __init__(
        self, trt: Any, drivers: Mapping[int, Driver], data: bytes, plan: PlanFile, manifest: Manifest, *,
        instances: int = 1, most_rows: int = 0, lost: Callable[[DeviceLost], None] = lambda error: None,
        graphs: bool = True, kept: KeptKernels | None = None, scratch: Mapping[int, Scratch] = MappingProxyType({}),
        watches: Mapping[int, Watch] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`drivers` by device number; `kept`: where kernels that are compiled on the GPU may be kept; `scratch`: what
        sessions share on a device that is too small for all; `watches`: who looks whether a device goes on.

        Raises PlanInvalid, OutOfMemory, DeviceLost or EngineFailed; then nothing is held, and what serves besides is as
        it was.
        """
        self._held = ExitStack()
        self._instances: list[TensorRtInstance] = []
        self.memory_bytes = plan.size_bytes * len(drivers)
        rows = most_rows or manifest.max_batch or 1
        with self._held:
            for number, driver in drivers.items():
                try:
                    loaded = self._loaded(driver, trt, data, plan, manifest, kept, graphs=graphs)
                except DeviceLost as error:  # an instance tells of it by itself
                    lost(error)
                    raise
                for _ in range(instances):
                    batches = Batches(manifest.inputs, plan.profiles, rows if manifest.proof.batchable else 1)
                    instance = TensorRtInstance(
                        driver, loaded, batches, lost, manifest.guards, graphs=graphs, scratch=scratch.get(number)
                    )
                    self._held.callback(instance.close)
                    self._instances.append(instance)
                    if number in watches:
                        watches[number].join(instance)
                        self._held.callback(watches[number].leave, instance)
                loaded.contexts.keep()
            self._held = self._held.pop_all()

    def _loaded(self, driver: Driver, trt: Any, *plan: Any, graphs: bool) -> TensorRtEngine:
        with attached(driver), cleared():
            loaded = TensorRtEngine(trt, driver, *plan, graphs=graphs)
        self._held.callback(_close, driver, loaded)
        return loaded

    @property
    def slots(self) -> Sequence[GpuSlot]:
        return [slot for instance in self._instances for slot in instance.slots]

    @property
    def threads_per_batch(self) -> int:
        return 1

    def open_inline(self) -> GpuSlot:
        """None of its batches runs on the caller's thread: that one would wait for the GPU."""
        return self.slots[0]

    def close_inline(self) -> None:
        """There is none."""

    def close(self) -> None:
        self._instances = []
        self._held.close()


def _close(driver: Driver, loaded: TensorRtEngine) -> None:
    """On its own device: the runtime of CUDA would take the first one, and make a context there."""
    try:
        with attached(driver):
            loaded.close()
    except DeviceLost:
        loaded.close()
