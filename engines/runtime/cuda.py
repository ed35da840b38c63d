"""The CUDA driver by NVIDIA's own bindings (`cuda-bindings`), which import on machines that have none."""

from __future__ import annotations

import ctypes
from typing import Any

from engines.errors import EngineError

__all__ = ["CudaDriver"]

_LAUNCH_BYTES = 2**12
"""What a kernel's arguments may take, on every GPU (CUDA C++ Programming Guide, "__global__ function parameters")."""


class CudaDriver:
    """`engines.plugins.gpu.driver.Driver` of the device whose context the calling thread has current.

    Raises EngineError where there are no bindings, no driver or no device, and where a call fails, with CUDA's name for
    why. Never run here.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise EngineError(f"no CUDA bindings ({error.msg}); pip install 'bitserve[gpu]'") from error
        self._cuda = driver
        try:
            self._done(driver.cuInit(0))
        except RuntimeError as error:  # of the bindings, where there is no library of the driver
            raise EngineError(f"no CUDA driver on this machine: {error}") from error
        self._device = self._done(driver.cuDeviceGet(device))

    def sm(self) -> int:
        """10 * major + minor of its compute capability."""
        names = self._cuda.CUdevice_attribute
        major, minor = (
            self._done(self._cuda.cuDeviceGetAttribute(name, self._device))
            for name in (
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )  # fmt: skip
        return 10 * int(major) + int(minor)

    def load_module(self, image: bytes) -> int:
        """Load a cubin into the context."""
        return int(self._done(self._cuda.cuModuleLoadData(image)))

    def unload_module(self, module: int) -> None:
        """Free it; no launch of its functions may be left."""
        self._done(self._cuda.cuModuleUnload(module))

    def function(self, module: int, name: str) -> int:
        """An entry of a module."""
        return int(self._done(self._cuda.cuModuleGetFunction(module, name.encode())))

    def launch(
        self, function: int, grid: tuple[int, int, int], block: int, shared_bytes: int, stream: int, argument: bytes
    ) -> None:
        """Put a run of a kernel with one argument into a stream, and return at once; CUDA copies the argument."""
        if len(argument) > _LAUNCH_BYTES:
            raise EngineError(f"an argument of {len(argument)} bytes; a kernel takes {_LAUNCH_BYTES} at most")
        held = ctypes.create_string_buffer(argument, len(argument))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(held))
        self._done(
            self._cuda.cuLaunchKernel(
                function, *grid, block, 1, 1, shared_bytes, stream, ctypes.addressof(pointers), 0
            )
        )  # fmt: skip

    def _done(self, answer: tuple[Any, ...]) -> Any:
        status, *rest = answer
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise EngineError(f"CUDA: {status.name}")
        return rest[0] if rest else None
