"""TensorRT and TensorRT-RTX on GPUs: a plan becomes a session of instances, each with a context and streams of its own.

It has run on simulated GPUs alone (tests/simulated); what a real one does with it was never seen.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

from engines.errors import DeviceLost
from engines.manifest import Manifest, PlanFile
from engines.runtime.buckets import Batches, Profile
from engines.runtime.driver import Driver, attached, cleared
from engines.runtime.kept_kernels import KeptKernels
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt_engine import TensorRtEngine
from engines.runtime.tensorrt_instance import TensorRtInstance
from engines.runtime.tensorrt_slot import GpuSlot
from engines.runtime.watch import Watch, watched

__all__ = ["TensorRtSession"]


class TensorRtSession:
    """`engines.runtime.session.Session` of some GPUs: `instances` of them on each, whose weights they share."""

    is_on_gpu = True
    inline_rows = 0
    inline_slot = None

    def __init__(
        self, trt: Any, drivers: Mapping[int, Driver], data: bytes, plan: PlanFile, manifest: Manifest, *,
        instances: int = 1, most_rows: int = 0, lost: Callable[[DeviceLost], None] = lambda error: None,
        graphs: bool = True, kept: Mapping[int, KeptKernels] = MappingProxyType({}),
        scratch: Mapping[int, Scratch] = MappingProxyType({}),
        watches: Mapping[int, Watch] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`drivers` by device number; `kept`: where kernels that are compiled on it may be kept; `scratch`: what
        sessions share on a device that is too small for all; `watches`: who looks whether a device goes on.

        Raises PlanInvalid, OutOfMemory, DeviceLost or EngineFailed; then nothing is held, and what serves besides is as
        it was.
        """
        self._held, self._watches = ExitStack(), watches
        self._instances: list[TensorRtInstance] = []
        self.memory_bytes = plan.size_bytes * len(drivers)
        rows = most_rows or manifest.max_batch or 1

        def make(number: int, driver: Driver) -> None:
            loaded = self._loaded(
                driver, watches.get(number), lost, (trt, data, plan, manifest, kept.get(number)), graphs=graphs
            )
            for at in range(instances):
                batches = Batches(manifest.inputs, *_profiles_of(plan, at, rows if manifest.proof.batchable else 1))
                instance = TensorRtInstance(
                    driver, loaded, batches, lost, plan.guards, graphs=graphs, scratch=scratch.get(number)
                )
                self._open(instance, watches.get(number))
            loaded.contexts.keep()

        try:
            for number, driver in drivers.items():
                make(number, driver)
        except BaseException:
            self.close()
            raise

    def _loaded(
        self, driver: Driver, watch: Watch | None, lost: Callable[[DeviceLost], None], plan: tuple[Any, ...], *,
        graphs: bool,
    ) -> TensorRtEngine:  # fmt: skip
        def load() -> TensorRtEngine:
            trt, *rest = plan
            with attached(driver), cleared():
                return TensorRtEngine(trt, driver, *rest, graphs=graphs)

        try:
            loaded = load() if watch is None else watched(watch, load, functools.partial(_close, driver))
        except DeviceLost as error:  # an instance tells of it by itself
            lost(error)
            raise
        self._held.callback(_close, driver, loaded)
        return loaded

    def _open(self, instance: TensorRtInstance, watch: Watch | None) -> None:
        if watch is not None:
            watch.join(instance)
            self._held.callback(watch.leave, instance)
        self._held.callback(instance.close)  # under the watch: it waits for the GPU
        instance.open()
        self._instances.append(instance)

    @property
    def slots(self) -> Sequence[GpuSlot]:
        return [slot for instance in self._instances for slot in instance.slots]

    @property
    def most_rows(self) -> int:
        return self._instances[0].most_rows if self._instances else 0

    @property
    def threads_per_batch(self) -> int:
        return 1

    def open_inline(self) -> GpuSlot:
        """None of its batches runs on the caller's thread: that one would wait for the GPU."""
        return self.slots[0]

    def close_inline(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Where a GPU hangs, that goes on beside: each call there would wait for it."""
        self._instances = []
        if any(watch.hangs for watch in self._watches.values()):
            threading.Thread(target=self._held.close, name="gpu-close", daemon=True).start()
        else:
            self._held.close()


def _profiles_of(plan: PlanFile, instance: int, rows: int) -> tuple[Sequence[Profile], int, int]:
    """Of an instance: a set of them, so many rows, and the number of the set's first. Of more instances, some share."""
    size = len(plan.profiles) // plan.profile_sets
    return plan.profiles[:size], rows, instance % plan.profile_sets * size


def _close(driver: Driver, loaded: TensorRtEngine) -> None:
    """On its own device: the runtime of CUDA would take the first one, and make a context there."""
    try:
        with attached(driver):
            loaded.close()
    except DeviceLost:
        loaded.close()
