"""The GPUs of this process: a driver for each, the libraries of their plans, and sessions on them.

Nothing of CUDA, TensorRT or NVML is imported before a session is opened.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engines.errors import DeviceLost, EngineError, PlanInvalid
from engines.hardware import gpus
from engines.manifest import Manifest, PlanFile
from engines.plugins.gpu.driver import Kernels
from engines.runtime.driver import Driver
from engines.runtime.kept_kernels import KeptKernels, kernels_file, sweep_kernels
from engines.runtime.plans import Here, look_here, read_plan
from engines.runtime.pycuda_driver import PyCudaDriver
from engines.runtime.scratch import Scratch
from engines.runtime.tensorrt import TensorRtSession
from engines.runtime.watch import Watch, watched

__all__ = ["Gpus"]

log = logging.getLogger(__name__)
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class Gpus:
    """`lost` is told, from any thread, that a device is lost; `folder` is where compiled kernels are kept. A GPU that
    does not go on for `hang_s` is lost, 0 = however long it takes.
    """

    def __init__(self, lost: Callable[[DeviceLost], None], folder: Path, hang_s: float = 0) -> None:
        self._lost, self._folder, self._hang_s = lost, folder, hang_s
        self._drivers: dict[int, PyCudaDriver] = {}
        self._turns: dict[int, threading.Lock] = {}
        self._scratch: dict[int, Scratch] = {}
        self._watches: dict[int, Watch] = {}
        self._kernels: dict[int, Kernels] = {}
        self._libraries: dict[str, Any] = {}
        self._registered: set[str] = set()
        self._held = ExitStack()
        self._lock = threading.Lock()

    def open(
        self, folder: Path, manifest: Manifest, key: bytes | None, *, devices: Sequence[int] = (),
        instances: int | None = None, most_rows: int = 0, graphs: bool = True,
    ) -> TensorRtSession | None:  # fmt: skip
        """A session of the first plan that fits all these devices (all that are here unless named), None without one.

        Raises PlanInvalid where a plan that fits is not what it seems, or devices are named and none fits; OutOfMemory,
        DeviceLost or EngineError.
        """
        here = look_here()
        wanted = tuple(devices) or tuple(range(here.gpus))
        if strange := [number for number in wanted if number >= here.gpus]:
            raise PlanInvalid(f"there is no GPU {strange[0]}: {here.gpus} are here")
        found = self._plan(folder, manifest, key, here, devices) if wanted else None
        if found is None:
            return None
        plan, data = found
        drivers: dict[int, Driver] = {number: self._driver(number) for number in wanted}
        with self._lock:
            trt = self._library(plan)
            scratch = {number: self._scratch.setdefault(number, Scratch(on)) for number, on in drivers.items()}
        watches = {number: watch for number in drivers if (watch := self._watch(number)) is not None}
        return TensorRtSession(
            trt, drivers, data, plan, manifest, instances=instances or 1, most_rows=most_rows, lost=self._lost,
            graphs=graphs, kept=self._kept(plan, key, wanted), scratch=scratch, watches=watches,
        )  # fmt: skip

    def _plan(
        self, folder: Path, manifest: Manifest, key: bytes | None, here: Here, devices: Sequence[int]
    ) -> tuple[PlanFile, bytes] | None:
        """The first that fits what is here, or the devices that are named."""
        if not devices:
            return _first_that_fits(folder, manifest, key, here)[0]
        if not manifest.plans:
            raise PlanInvalid("it has no plan for a GPU; compile it for one of targets tensorrt and tensorrt-rtx")
        seen = gpus()
        sms = tuple(dict.fromkeys(seen[number].sm for number in devices))
        found, refused = _first_that_fits(folder, manifest, key, here._replace(sms=sms))
        if found is None:
            raise PlanInvalid(refused)
        return found

    def _kept(self, plan: PlanFile, key: bytes | None, devices: Sequence[int]) -> dict[int, KeptKernels]:
        """Of a plan, by the number of a device."""
        if key is None:
            return {}
        seen = gpus()
        return {number: KeptKernels(kernels_file(self._folder, plan, seen[number], number), key) for number in devices}

    def sweep(self, manifests: Callable[[], Iterable[Manifest]], older_than_s: float, now_s: float) -> int:
        """Remove kernels that were compiled for plans which are in none of these; how many files."""
        return sweep_kernels(self._folder, _MODULES, manifests, older_than_s, now_s)

    def _watch(self, number: int) -> Watch | None:
        """None where nobody looks."""
        with self._lock:
            return self._watches.setdefault(number, Watch(self._hang_s)) if self._hang_s else None

    def _driver(self, number: int) -> PyCudaDriver:
        """Made once. A GPU that hangs then keeps nobody waiting who wants another."""
        with self._lock:
            turn = self._turns.setdefault(number, threading.Lock())
        with turn:
            if number not in self._drivers:
                self._drivers[number] = self._made(number)
            return self._drivers[number]

    def _made(self, number: int) -> PyCudaDriver:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts them
        watch, make = self._watch(number), functools.partial(PyCudaDriver, number)
        try:
            return make() if watch is None else watched(watch, make, lambda driver: None)
        except DeviceLost as error:
            self._lost(error)
            raise
        except EngineError as error:  # NVML sees a GPU that cannot be used: PyCUDA may not be installed
            raise PlanInvalid(str(error)) from error

    def _library(self, plan: PlanFile) -> Any:
        """Its module. The plugins of binary layers stay registered as long as the process lives."""
        trt = self._libraries.get(plan.target)
        if trt is None:
            try:
                trt = self._libraries[plan.target] = importlib.import_module(_MODULES[plan.target])
            except ImportError as error:
                raise PlanInvalid(f"{plan.target} cannot be imported: {error.msg}") from error
        if plan.plugins and plan.target not in self._registered:
            self._register(trt)
            self._registered.add(plan.target)
        return trt

    def _register(self, trt: Any) -> None:
        from engines.plugins.gpu.tensorrt import registered

        self._held.enter_context(registered(trt, lambda reason: log.error("a plugin: %s", reason), self._kernels_here))

    def _kernels_here(self) -> Kernels:
        """Of the device that the calling thread has current."""
        from engines.plugins.cuda.cubins import cubin

        driver = next(iter(self._drivers.values()))
        number = driver.current_device()
        with self._lock:
            if number not in self._kernels:
                self._kernels[number] = Kernels(
                    self._drivers[number], lambda source, sm: cubin(source, sm, self._folder / "plugins")
                )
            return self._kernels[number]


def _first_that_fits(
    folder: Path, manifest: Manifest, key: bytes | None, here: Here
) -> tuple[tuple[PlanFile, bytes] | None, str]:
    """TensorRT's before TensorRT-RTX's; and why those before it are not used, which `unfit_plans` says, too."""
    refused: list[str] = []
    for plan in sorted(manifest.plans, key=lambda plan: list(_MODULES).index(plan.target)):
        try:
            return (plan, read_plan(folder, plan, key, here)), "; ".join(refused)
        except PlanInvalid as error:
            log.info("a plan is not used: %s", error)
            refused.append(f"{plan.target}: {error}")
    return None, "; ".join(refused)
