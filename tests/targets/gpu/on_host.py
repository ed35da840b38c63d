"""This processor in place of a GPU: the kernels on the host, for plugins that are run as TensorRT runs them."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.plugins.cuda.launches import POINTERS, Launch
from tests.gpu.machines import Replay
from tests.gpu.plugins import Plugins, run_network
from tests.plugins.cuda.on_host import CUDA, HostBuild

__all__ = ["Host", "HostDriver", "HostPlugins", "run_network"]

_UNWRITTEN = 0xCD


class HostDriver:
    """`engines.plugins.gpu.driver.Driver` whose device is this processor. Memory is that of arrays that it was told."""

    def __init__(self, build: HostBuild, sm: int, sources: Path = CUDA) -> None:
        self._build, self._sm, self._sources = build, sm, sources
        self._modules: dict[int, str] = {}
        self._functions: list[tuple[str, str]] = []
        self._memory: dict[int, np.ndarray] = {}
        self.launched: list[str] = []
        """Entries, in their order."""
        self.captured: list[tuple[Any, ...]] | None = None
        """Launches, while they are noted and not run."""
        self.has_spare_memory = False
        """Where a kernel makes less than its output has room for; else it has to write all of that."""
        self.seed = 0

    def hold(self, array: np.ndarray) -> int:
        """Its address."""
        address = int(array.ctypes.data)
        self._memory[address] = array
        return address

    def held(self, address: int) -> np.ndarray:
        """The array there."""
        return self._memory[address]

    def release(self, address: int) -> None:
        """Forget the array there."""
        del self._memory[address]

    def sm(self) -> int:
        return self._sm

    def load_module(self, image: bytes) -> int:
        self._require_no_capture("a module is loaded")
        module = max(self._modules, default=0) + 1
        self._modules[module] = image.decode()
        return module

    def unload_module(self, module: int) -> None:
        self._require_no_capture("a module is unloaded")
        del self._modules[module]

    @property
    def modules(self) -> list[str]:
        """Those that are loaded."""
        return list(self._modules.values())

    def function(self, module: int, name: str) -> int:
        self._functions.append((self._modules[module], name))
        return len(self._functions) - 1

    def launch(
        self, function: int, grid: tuple[int, int, int], block: int, shared_bytes: int, stream: int, argument: bytes
    ) -> None:
        if self.captured is not None:
            self.captured.append((function, grid, block, shared_bytes, stream, argument))
            return
        source, entry = self._functions[function]
        count = POINTERS[source]
        *given, out = (self._memory.get(one) for one in struct.unpack_from(f"<{count}Q", argument))
        assert out is not None, "the output lies nowhere"
        launch = Launch(source, entry, grid, block, shared_bytes, argument[8 * count :])
        kernels = self._build.kernels(self._sources / f"{source}.cu", self._sm)
        made = out.shape, out.dtype.type
        out[...] = kernels.run(launch, given, made, seed=self.seed, is_whole=not self.has_spare_memory)
        self.launched.append(entry)

    def _require_no_capture(self, what: str) -> None:
        """As CUDA does: such a call would end the capture of any stream."""
        if self.captured is not None:
            raise EngineError(f"{what} while launches are captured")


class Host:
    """`tests.gpu.machines.Machine` of that driver, its memory this process's; a launch is done when it returns."""

    stream = 1

    def __init__(self, build: HostBuild, sm: int, sources: Path = CUDA) -> None:
        self.driver = HostDriver(build, sm, sources)

    @property
    def modules(self) -> list[str]:
        return self.driver.modules

    def cubin(self, source: str, sm: int) -> bytes:
        return source.encode()

    @contextlib.contextmanager
    def lend(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Iterator[list[int]]:
        for array in outputs:
            array.reshape(-1).view(np.uint8)[...] = _UNWRITTEN
        addresses = [self.driver.hold(array) for array in (*map(_copied, inputs), *outputs)]
        try:
            yield addresses
        finally:
            for address in set(addresses):
                self.driver.release(address)

    def write(self, address: int, array: np.ndarray) -> None:
        held = self.driver.held(address)
        held[...] = array.reshape(held.shape)

    def read(self, address: int, array: np.ndarray) -> None:
        array[...] = self.driver.held(address).reshape(array.shape)

    @contextlib.contextmanager
    def captured(self, run: Callable[[], None]) -> Iterator[Replay]:
        noted: list[tuple[Any, ...]] = []
        self.driver.captured = noted
        try:
            run()
        finally:
            self.driver.captured = None

        def replay() -> None:
            for launch in noted:
                self.driver.launch(*launch)

        yield replay

    def elapsed_us(self, run: Callable[[], None], times: int) -> float:
        """Of the host: no figure of a GPU."""
        begun_s = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - begun_s) * 1e6 / times

    def used_bytes(self) -> int:
        """Its memory is the process's own, which is looked at anyway."""
        return 0


def _copied(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="C")


class HostPlugins(Plugins):
    """Plugins on the host, and their fields looked at."""

    overwrites = True

    def __init__(self, build: HostBuild, sm: int) -> None:
        host = Host(build, sm)
        super().__init__(host)
        self.driver = host.driver
