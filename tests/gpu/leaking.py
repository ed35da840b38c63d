"""Kernels that leak something with each change of shapes: planted, to see that it is found."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from engines.plugins.cuda.launches import Launch
from engines.plugins.gpu.driver import Kernels

__all__ = ["LaunchesAreKept", "MemoryOfTheDevice", "MemoryOutsideOfPython", "ModulesAreLoadedAgain"]


class LaunchesAreKept(Kernels):
    """Planted."""

    kept: ClassVar[list[bytes]] = []

    def prepare(self, launch: Launch) -> int:
        self.kept.append(bytes(100))
        return super().prepare(launch)


class ModulesAreLoadedAgain(Kernels):
    """Planted: what TensorRT's own ahead-of-time plugins do (NVIDIA/TensorRT#4849)."""

    def prepare(self, launch: Launch) -> int:
        self._functions.clear()
        self._modules.clear()
        return super().prepare(launch)


class MemoryOutsideOfPython(Kernels):
    """Planted: a kilobyte a change, which no collector sees."""

    allocate = ctypes.CDLL(None).malloc

    def prepare(self, launch: Launch) -> int:
        self.allocate.restype = ctypes.c_void_p
        ctypes.memset(self.allocate(ctypes.c_size_t(1024)), 1, 1024)
        return super().prepare(launch)


class MemoryOfTheDevice(Kernels):
    """Planted: a kilobyte of a GPU's memory a change."""

    def prepare(self, launch: Launch) -> int:
        from cuda.bindings import driver

        driver.cuMemAlloc(1024)
        return super().prepare(launch)
