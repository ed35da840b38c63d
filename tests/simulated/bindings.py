"""PyCUDA and NVIDIA's bindings as far as the driver uses them, over simulated GPUs: both call the same driver.

Sources: PyCUDA's documentation of `pycuda.driver` (objects are of the context that was current when they were made, and
go in a thread that has it current); cuda-bindings' of `cuda.bindings.driver` (every call gives a tuple, its first
element the CUresult).
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engines.errors import CaptureRefused, DeviceLost, EngineError, OutOfMemory
from tests.simulated.gpu import SimulatedGpu, current_gpu
from tests.simulated.ordering import RuleBroken

__all__ = ["bindings_over", "pycuda_over"]

_ERRORS = (
    "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE", "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_INVALID_VALUE", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
)  # fmt: skip


def pycuda_over(gpus: Sequence[SimulatedGpu]) -> types.SimpleNamespace:
    """The module `pycuda.driver`."""

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    class MemoryError(Error):
        pass

    class LaunchError(Error):
        pass

    def told(call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except OutOfMemory as error:
            raise MemoryError(f"{call.__name__} failed: out of memory") from error
        except DeviceLost as error:
            raise LaunchError(f"{call.__name__} failed: unspecified launch failure") from error
        except (CaptureRefused, EngineError) as error:
            raise LogicError(f"{call.__name__} failed: {error}") from error

    class Context:
        def __init__(self, gpu: SimulatedGpu) -> None:
            self._gpu = gpu

        def push(self) -> None:
            told(self._gpu.attach)

        @staticmethod
        def pop() -> None:
            told(current_gpu().detach)

    class Device:
        def __init__(self, number: int) -> None:
            if number >= len(gpus):
                raise LogicError("cuDeviceGet failed: invalid device ordinal")
            self._gpu = gpus[number]

        def retain_primary_context(self) -> Context:
            return Context(self._gpu)

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            if flags != 1:
                raise RuleBroken("a stream that waits for the default stream")
            self._gpu = current_gpu()
            self.handle: int = told(self._gpu.stream)

        def __del__(self) -> None:
            if hasattr(self, "handle") and not self._gpu.is_lost:
                if current_gpu() is not self._gpu:
                    raise RuleBroken("a stream goes in a thread that has another context")
                self._gpu.close_stream(self.handle)

    return types.SimpleNamespace(
        Error=Error, LogicError=LogicError, MemoryError=MemoryError, LaunchError=LaunchError, Context=Context,
        Device=Device, Stream=Stream, init=lambda: None,
        mem_get_info=lambda: tuple(told(current_gpu().memory)),
        memcpy_htod_async=lambda dest, src, stream: told(current_gpu().copy_in, dest, src, stream.handle),
        memcpy_dtoh_async=lambda dest, src, stream: told(current_gpu().copy_out, dest, src, stream.handle),
    )  # fmt: skip


def bindings_over(gpus: Sequence[SimulatedGpu], sm: int = 86) -> types.SimpleNamespace:
    """The module `cuda.bindings.driver`."""
    names = ("CUDA_SUCCESS", *_ERRORS)
    result: Any = enum.IntEnum("CUresult", {name: number for number, name in enumerate(names)})  # type: ignore[misc]
    capability = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY"
    parts = {f"{capability}_MAJOR": sm // 10, f"{capability}_MINOR": sm % 10}
    attribute = enum.Enum("CUdevice_attribute", parts)  # type: ignore[misc]

    def told(call: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
        try:
            made = call(*args)
        except OutOfMemory:
            return (result.CUDA_ERROR_OUT_OF_MEMORY,)
        except DeviceLost:
            return (result.CUDA_ERROR_LAUNCH_FAILED,)
        except CaptureRefused as error:
            isolated = "ISOLATION" in str(error)
            return (result[f"CUDA_ERROR_STREAM_CAPTURE_{'ISOLATION' if isolated else 'UNSUPPORTED'}"],)
        except EngineError:
            return (result.CUDA_ERROR_INVALID_VALUE,)
        return (result.CUDA_SUCCESS,) if made is None else (result.CUDA_SUCCESS, made)

    def on(name: str) -> Callable[..., tuple[Any, ...]]:
        return lambda *args: told(getattr(current_gpu(), name), *args)

    def begin(stream: int, mode: int) -> tuple[Any, ...]:
        if mode != 1:
            raise RuleBroken("a capture that forbids other threads what they do")
        return told(current_gpu().begin_capture, stream)

    def instantiate(graph: int, flags: int) -> tuple[Any, ...]:
        """The one that was captured is the one that runs."""
        if current_gpu().faults.refuse_graphs:
            current_gpu().close_graph(graph)
            return (result.CUDA_ERROR_OUT_OF_MEMORY,)
        return (result.CUDA_SUCCESS, graph)

    def flags_of(flags: int) -> tuple[Any, ...]:
        if flags != 3:
            raise RuleBroken("an event whose waiting takes a processor, or that takes times")
        return told(current_gpu().event)

    pinned: dict[int, np.ndarray] = {}

    def pin(size: int, flags: int) -> tuple[Any, ...]:
        status, *arrays = told(current_gpu().pinned, size)
        for array in arrays:
            array.fill(0xCD)
            pinned[array.ctypes.data] = array
        return (status, *(array.ctypes.data for array in arrays))

    return types.SimpleNamespace(
        CUresult=result,
        CUdevice_attribute=attribute,
        CUevent_flags=enum.Enum("CUevent_flags", {"CU_EVENT_BLOCKING_SYNC": 1, "CU_EVENT_DISABLE_TIMING": 2}),  # type: ignore[misc]
        CUstreamCaptureMode=types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
        cuInit=lambda flags: (result.CUDA_SUCCESS,) if gpus else (result.CUDA_ERROR_NO_DEVICE,),
        cuDeviceGet=lambda number: (
            (result.CUDA_SUCCESS, number) if number < len(gpus) else (result.CUDA_ERROR_INVALID_DEVICE, 0)
        ),
        cuDeviceGetAttribute=lambda name, device: (result.CUDA_SUCCESS, name.value),
        cuCtxSynchronize=lambda: told(lambda: current_gpu().memory() and None),
        cuCtxGetDevice=lambda: (result.CUDA_SUCCESS, list(gpus).index(current_gpu())),
        cuMemAlloc=on("allocate"),
        cuMemFree=on("free"),
        cuMemHostAlloc=pin,
        cuMemFreeHost=lambda address: told(current_gpu().unpin, pinned.pop(address)),
        cuEventCreate=flags_of,
        cuEventDestroy=on("close_event"),
        cuEventRecord=on("record"),
        cuStreamWaitEvent=lambda stream, event, flags: told(current_gpu().wait, stream, event),
        cuEventSynchronize=on("synchronize"),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=on("end_capture"),
        cuGraphInstantiate=instantiate,
        cuGraphDestroy=lambda graph: (result.CUDA_SUCCESS,),
        cuGraphLaunch=on("replay"),
        cuGraphExecDestroy=on("close_graph"),
    )
