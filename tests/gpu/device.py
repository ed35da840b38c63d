"""A GPU by its driver: memory, a stream, events and graphs. It has run on no GPU yet.

What it tells the driver is run in CI on a stand-in for the driver's library (`standin.c`), over the host's kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.plugins.cuda.cubins import SMS_WITH_BITS, compiled, cubin, options_for
from engines.runtime.cuda import CudaDriver
from tests.gpu.machines import NoMachine, NoUnits, Replay
from tests.plugins.cuda.on_host import CUDA

__all__ = ["Gpu"]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: it never waits for the default stream, nor that for it."""
_UNWRITTEN = 0xCD
_FEWEST_BYTES = 16
"""What is allocated of arrays without an element."""


class Gpu:
    """`tests.gpu.machines.Machine` of the first GPU; raises NoMachine where there is none with units for bits. Cubins
    are compiled on this machine, and kept in `folder`; those of other `sources` are not kept.
    """

    def __init__(self, folder: Path, sources: Path = CUDA) -> None:
        try:
            self.driver = _CountingDriver()
        except EngineError as error:
            raise NoMachine(str(error)) from error
        if self.driver.sm() not in SMS_WITH_BITS:
            raise NoUnits(f"the GPU here is of sm_{self.driver.sm()}, whose tensor cores do not count bits")
        from cuda.bindings import driver

        self._cuda, self._folder, self._sources = driver, folder, sources
        self._device = self._done(driver.cuDeviceGet(0))
        self._done(driver.cuCtxSetCurrent(self._done(driver.cuDevicePrimaryCtxRetain(self._device))))
        self.stream = int(self._done(driver.cuStreamCreate(_NON_BLOCKING)))

    def close(self) -> None:
        """Let go of the stream and of the context."""
        self._done(self._cuda.cuStreamDestroy(self.stream))
        self._done(self._cuda.cuDevicePrimaryCtxRelease(self._device))

    @property
    def modules(self) -> list[str]:
        return list(self.driver.loaded.values())

    def cubin(self, source: str, sm: int) -> bytes:
        if self._sources == CUDA:
            return cubin(source, sm, self._folder)
        texts = {path.name: path.read_text("utf-8") for path in self._sources.glob("*.cu*")}
        return compiled(source, texts, options_for(sm))

    @contextlib.contextmanager
    def lend(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Iterator[list[int]]:
        with contextlib.ExitStack() as held:
            addresses = [held.enter_context(self._allocated(array)) for array in (*inputs, *outputs)]
            for array, address in zip(inputs, addresses, strict=False):
                self.write(address, array)
            for array, address in zip(outputs, addresses[len(inputs) :], strict=True):
                self._done(self._cuda.cuMemsetD8(address, _UNWRITTEN, array.nbytes))
            yield addresses
            for array, address in zip(outputs, addresses[len(inputs) :], strict=True):
                self.read(address, array)

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy an array there, once all is done that the stream has."""
        self._done(self._cuda.cuStreamSynchronize(self.stream))
        whole = np.ascontiguousarray(array)
        self._done(self._cuda.cuMemcpyHtoD(address, whole.ctypes.data, whole.nbytes))

    def read(self, address: int, array: np.ndarray) -> None:
        """Fill an array from there, once all is done that the stream has."""
        self._done(self._cuda.cuStreamSynchronize(self.stream))
        self._done(self._cuda.cuMemcpyDtoH(array.ctypes.data, address, array.nbytes))

    @contextlib.contextmanager
    def captured(self, run: Callable[[], None]) -> Iterator[Replay]:
        cuda = self._cuda
        self._done(cuda.cuStreamBeginCapture(self.stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        with contextlib.ExitStack() as held:
            try:
                run()
            finally:
                graph = self._done(cuda.cuStreamEndCapture(self.stream))
                held.callback(lambda: self._done(cuda.cuGraphDestroy(graph)))
            ready = self._done(cuda.cuGraphInstantiate(graph, 0))
            held.callback(lambda: self._done(cuda.cuGraphExecDestroy(ready)))
            held.callback(lambda: self._done(cuda.cuStreamSynchronize(self.stream)))
            yield lambda: self._done(cuda.cuGraphLaunch(ready, self.stream))

    def elapsed_us(self, run: Callable[[], None], times: int) -> float:
        cuda = self._cuda
        begin, end = (self._done(cuda.cuEventCreate(0)) for _ in range(2))
        try:
            self._done(cuda.cuEventRecord(begin, self.stream))
            for _ in range(times):
                run()
            self._done(cuda.cuEventRecord(end, self.stream))
            self._done(cuda.cuEventSynchronize(end))
            return float(self._done(cuda.cuEventElapsedTime(begin, end))) * 1e3 / times
        finally:
            for event in (begin, end):
                self._done(cuda.cuEventDestroy(event))

    def used_bytes(self) -> int:
        free, total = self._done(self._cuda.cuMemGetInfo())
        return int(total) - int(free)

    @contextlib.contextmanager
    def _allocated(self, array: np.ndarray) -> Iterator[int]:
        address = int(self._done(self._cuda.cuMemAlloc(max(array.nbytes, _FEWEST_BYTES))))
        try:
            yield address
        finally:
            self._done(self._cuda.cuStreamSynchronize(self.stream))
            self._done(self._cuda.cuMemFree(address))

    def _done(self, answer: tuple[Any, ...]) -> Any:
        status, *rest = answer
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise EngineError(f"CUDA: {status.name}")
        return rest[0] if len(rest) == 1 else rest


class _CountingDriver(CudaDriver):
    """It knows what is loaded, which CUDA does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[int, str] = {}

    def load_module(self, image: bytes) -> int:
        module = super().load_module(image)
        self.loaded[module] = f"{len(image)} bytes"
        return module

    def unload_module(self, module: int) -> None:
        super().unload_module(module)
        del self.loaded[module]
