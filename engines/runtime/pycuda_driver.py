"""`engines.runtime.driver.Driver` by PyCUDA and, on the same streams, by NVIDIA's own bindings.

PyCUDA has the context, streams and copies. Events and graphs are the bindings': PyCUDA has no graphs, and does not tell
an event's handle, which TensorRT asks for. So is memory: PyCUDA holds the interpreter while it allocates and frees
(2026.1, `cuda.hpp`), which waits for the GPU, and all other threads would wait, too. Both call the same driver, whose
handles they share. Imported where there is a GPU alone: PyCUDA does not import without the driver's library.

PyCUDA's objects must go in a thread that has their context current, and a thread that ends with one on PyCUDA's stack
ends the process: `attach` and `detach` come in pairs.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from engines.errors import CaptureRefused, DeviceLost, EngineError, OutOfMemory
from engines.runtime.cuda import CudaDriver
from engines.runtime.driver import Memory

__all__ = ["STICKY", "PyCudaDriver"]

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: it never waits for the default stream, nor that for it."""
STICKY = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT", "CONTEXT_IS_DESTROYED", "DEINITIALIZED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE", "EXTERNAL_DEVICE",
        "HARDWARE_STACK_ERROR", "ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "INVALID_ADDRESS_SPACE", "INVALID_PC",
        "CONTAINED", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "MISALIGNED_ADDRESS", "MPS_CLIENT_TERMINATED",
        "MPS_RPC_FAILURE", "NVLINK_UNCORRECTABLE", "TENSOR_MEMORY_LEAK", "UNKNOWN",
    )
)  # fmt: skip
"""After these the process has no use of the device any more (CUDA Driver API, CUresult), or nothing is known of it."""


class PyCudaDriver(CudaDriver):
    """Of one GPU. It has never met one."""

    def __init__(self, device: int = 0) -> None:
        """Raises EngineError where there is no driver, no such GPU, or no PyCUDA."""
        super().__init__(device)
        try:
            pycuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise EngineError(f"no PyCUDA ({error}); pip install 'pycuda>=2026.1,<2027'") from error
        self._pycuda = pycuda
        with self._as_ours():
            pycuda.init()
            self._context = pycuda.Device(device).retain_primary_context()
        self._streams: dict[int, Any] = {}

    def current_device(self) -> int:
        """The number of the device whose context the calling thread has current."""
        return int(self._done(self._cuda.cuCtxGetDevice()))

    # -- PyCUDA --------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        with self._as_ours():
            self._context.push()

    def detach(self) -> None:
        with suppress(DeviceLost), self._as_ours():  # of which there is nothing left to take away
            self._pycuda.Context.pop()

    def memory(self) -> Memory:
        with self._as_ours():
            free, total = self._pycuda.mem_get_info()
        return Memory(int(free), int(total))

    def stream(self) -> int:
        with self._as_ours():
            made = self._pycuda.Stream(_NON_BLOCKING)
        self._streams[made.handle] = made
        return int(made.handle)

    def close_stream(self, stream: int) -> None:
        del self._streams[stream]  # its destructor does it

    def copy_in(self, address: int, source: np.ndarray, stream: int) -> None:
        with self._as_ours():
            self._pycuda.memcpy_htod_async(address, source, self._streams[stream])

    def copy_out(self, target: np.ndarray, address: int, stream: int) -> None:
        with self._as_ours():
            self._pycuda.memcpy_dtoh_async(target, address, self._streams[stream])

    # -- the bindings --------------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int) -> int:
        with self._saying(f"{size_bytes} bytes of the GPU"):
            return int(self._done(self._cuda.cuMemAlloc(size_bytes)))

    def free(self, address: int) -> None:
        self._done(self._cuda.cuMemFree(address))

    def pinned(self, size_bytes: int) -> np.ndarray:
        with self._saying(f"{size_bytes} bytes of page-locked memory"):
            address = int(self._done(self._cuda.cuMemHostAlloc(size_bytes, 0)))
        made = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        made.fill(0)
        return made

    def unpin(self, array: np.ndarray) -> None:
        self._done(self._cuda.cuMemFreeHost(array.ctypes.data))

    def event(self) -> int:
        flags = self._cuda.CUevent_flags
        wanted = flags.CU_EVENT_BLOCKING_SYNC.value | flags.CU_EVENT_DISABLE_TIMING.value
        return int(self._done(self._cuda.cuEventCreate(wanted)))

    def close_event(self, event: int) -> None:
        self._done(self._cuda.cuEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        self._done(self._cuda.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        self._done(self._cuda.cuStreamWaitEvent(stream, event, 0))

    def synchronize(self, event: int) -> None:
        self._done(self._cuda.cuEventSynchronize(event))

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._done(self._cuda.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        cuda = self._cuda
        graph = self._done(cuda.cuStreamEndCapture(stream))
        try:
            return int(self._done(cuda.cuGraphInstantiate(graph, 0)))
        except DeviceLost:
            raise
        except EngineError as error:  # of memory, say: batches run without a graph, too
            raise CaptureRefused(str(error)) from error
        finally:
            self._done(cuda.cuGraphDestroy(graph))

    def replay(self, graph: int, stream: int) -> None:
        self._done(self._cuda.cuGraphLaunch(graph, stream))

    def close_graph(self, graph: int) -> None:
        self._done(self._cuda.cuGraphExecDestroy(graph))

    # -- errors --------------------------------------------------------------------------------------------------

    def _done(self, answer: tuple[Any, ...]) -> Any:
        status, *rest = answer
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise _error_of(status.name)
        return rest[0] if rest else None

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        try:
            yield
        except OutOfMemory as error:
            memory = self.memory()
            raise OutOfMemory(f"{what}, {memory.free} of {memory.total} are free: {error}") from error

    @contextmanager
    def _as_ours(self) -> Iterator[None]:
        pycuda = self._pycuda
        try:
            yield
        except pycuda.MemoryError as error:
            raise OutOfMemory(f"memory of the GPU: {error}") from error
        except pycuda.LaunchError as error:
            raise DeviceLost(f"CUDA: {error}") from error
        except pycuda.Error as error:
            raise self._sticky_or(error) from error

    def _sticky_or(self, error: Exception) -> EngineError:
        """PyCUDA keeps CUDA's text of an error; a sticky one is the next call's, too."""
        status, *_ = self._cuda.cuCtxSynchronize()
        if status.name in STICKY:
            return DeviceLost(f"CUDA: {error} ({status.name})")
        return EngineError(f"CUDA: {error}")


def _error_of(name: str) -> EngineError:
    if name in STICKY:
        return DeviceLost(f"CUDA: {name}")
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        return OutOfMemory(f"CUDA: {name}")
    if name.startswith("CUDA_ERROR_STREAM_CAPTURE") or name == "CUDA_ERROR_CAPTURED_EVENT":
        return CaptureRefused(f"CUDA: {name}")
    return EngineError(f"CUDA: {name}")
