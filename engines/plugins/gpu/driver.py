"""The CUDA driver, as far as bitserve uses it: what a plugin launches its kernels through."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from engines.plugins.cuda.launches import Launch

__all__ = ["Driver", "Kernels"]


class Driver(Protocol):
    """Of one device, whose primary context is current in the threads that call. Raises EngineError.

    Modules, functions and streams are the driver's own handles.
    """

    def sm(self) -> int:
        """10 * major + minor of its compute capability."""

    def load_module(self, image: bytes) -> int:
        """Load a cubin into the context."""

    def unload_module(self, module: int) -> None:
        """Free it; no launch of its functions may be left."""

    def function(self, module: int, name: str) -> int:
        """An entry of a module."""

    def launch(
        self, function: int, grid: tuple[int, int, int], block: int, shared_bytes: int, stream: int, argument: bytes
    ) -> None:
        """Put a run of a kernel with one argument into a stream, and return at once."""


class CubinsOf(Protocol):
    """Where cubins come from: `engines.plugins.cuda.cubins.cubin` with a folder."""

    def __call__(self, source: str, sm: int) -> bytes:
        """Raises EngineError where there is none."""


class Kernels:
    """The kernels on one device: each module is loaded once, when it is first asked for. Thread-safe."""

    def __init__(self, driver: Driver, cubins: CubinsOf) -> None:
        self._driver, self._cubins = driver, cubins
        self._modules: dict[str, int] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def prepare(self, launch: Launch) -> int:
        """The function of a launch; loading takes long, and must not be left to a run that is captured."""
        key = launch.source, launch.entry
        if key not in self._functions:
            with self._lock:
                self._load(launch)
        return self._functions[key]

    def _load(self, launch: Launch) -> None:
        if launch.source not in self._modules:
            image = self._cubins(launch.source, self._driver.sm())
            self._modules[launch.source] = self._driver.load_module(image)
        function = self._driver.function(self._modules[launch.source], launch.entry)
        self._functions[launch.source, launch.entry] = function

    def run(self, launch: Launch, pointers: Sequence[int], stream: int) -> None:
        """Put it into the stream."""
        self._driver.launch(
            self.prepare(launch), launch.grid, launch.block, launch.shared_bytes, stream, launch.arguments(pointers)
        )

    def close(self) -> None:
        """Unload all modules."""
        for module in self._modules.values():
            self._driver.unload_module(module)
        self._modules.clear()
        self._functions.clear()
