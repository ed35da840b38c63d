"""The GPU's kernels on this processor: the very .cu sources, compiled over a shim of the PTX operations they use.

A run ends with HostFault where a kernel does something that PTX does not allow, or that only luck makes right: a race
in shared memory, a read of what nothing has written, lanes that diverge at an operation of the warp, an access out of
bounds or misaligned, an output that two threads write or none; with UNDEFINED, also what C++ leaves undefined. Not
found are reads of variables before they have a value, but for those that the compiler warns of.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["CUDA", "SHIM", "UNDEFINED", "HostBuild", "HostFault", "HostKernels", "missing"]

SHIM = Path(__file__).parent / "shim"
CUDA = Path(__file__).parents[3] / "engines/plugins/cuda"
COMPILER = "g++"
_RUNTIME = ("shared", "buffers", "block", "warp", "undefined", "traced", "run")
_CHECKS = ("-fsanitize=thread",)  # of kernels: traced.cpp has what their loads and stores call
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
"""Flags of a build that finds what C++ leaves undefined, and takes twice the time to compile."""

_POPCOUNT = ("-mpopcnt",) if platform.machine() == "x86_64" else ()
# -ffp-contract=off: ptx::multiply and ptx::add round once each; -fno-gnu-unique: several builds of a source are loaded
_FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-Wno-parentheses",
    "-ffp-contract=off", "-fno-gnu-unique", "-fno-strict-aliasing", *_POPCOUNT,
)  # fmt: skip
_MESSAGE_BYTES = 1000
_OUTPUT, _INPUT, _PARTLY_WRITTEN = range(3)
"""As shim/buffers.hpp numbers uses of memory."""


class HostFault(Exception):
    """What a kernel did wrong, in the shim's words."""


class Launch(Protocol):
    """What is read of a launch; `engines.plugins.cuda.launches.Launch` is one."""

    @property
    def source(self) -> str: ...
    @property
    def entry(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int, int]: ...
    @property
    def block(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    def arguments(self, pointers: Sequence[int]) -> bytes: ...


def missing() -> list[str]:
    """What is not installed here and must be."""
    if shutil.which(COMPILER) is None:
        return [COMPILER]
    asked = subprocess.run(
        [COMPILER, "-x", "c++", "-fsyntax-only", "-"], input="#include <boost/context/fiber.hpp>\n", text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    return ["Boost.Context"] if asked.returncode else []


class HostBuild:
    """Compiles sources below `folder`, each once for its text, SM and flags."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kernels: dict[str, HostKernels] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._objects = list(pool.map(self._runtime, _RUNTIME))

    def kernels(self, source: Path, sm: int, *, flags: Sequence[str] = ()) -> HostKernels:
        """Of one .cu file, which finds what it includes in its folder, and ptx.cuh among the kernels of the project."""
        key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(source.parent.glob("*.cu*"))))
        key.update(repr((str(source), sm, *flags)).encode())
        name = f"{source.stem}-{sm}-{key.hexdigest()[:16]}"
        if name not in self._kernels:
            self._kernels[name] = HostKernels(self._library(source, sm, flags, name))
        return self._kernels[name]

    def _runtime(self, name: str) -> Path:
        built = self._folder / f"{name}.o"
        _compile("-DBITSERVE_SM=80", "-c", str(SHIM / f"{name}.cpp"), "-o", str(built))
        return built

    def _library(self, source: Path, sm: int, flags: Sequence[str], name: str) -> Path:
        built, compiled = self._folder / f"{name}.so", self._folder / f"{name}.o"
        _compile(
            "-c", "-DBITSERVE_ON_HOST", f"-DBITSERVE_SM={sm}", f'-DBITSERVE_KERNELS="{source}"', *_CHECKS, *flags,
            f"-I{SHIM}", f"-I{source.parent}", f"-I{CUDA}", str(SHIM / "launched.cpp"), "-o", str(compiled),
        )  # fmt: skip
        _compile("-shared", "-Wl,-z,defs", str(compiled), *map(str, self._objects), "-lboost_context", "-o", str(built))
        return built


class HostKernels:
    """The kernels of one source file, ready to be launched."""

    def __init__(self, library: Path) -> None:
        self._library = library = ctypes.CDLL(str(library))
        library.shim_allocate.restype = ctypes.c_void_p
        library.shim_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
        library.shim_arguments_bytes.restype = ctypes.c_size_t
        library.shim_free.argtypes = [ctypes.c_void_p]
        library.shim_free.restype = None
        library.shim_run.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_int,
            ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip

    def entries(self) -> set[str]:
        """Names of the kernels."""
        listed = subprocess.run(["nm", "-D", "--defined-only", self._library._name], capture_output=True, check=True)
        names = {line.split()[-1] for line in listed.stdout.decode().splitlines() if " T " in line}
        return {name for name in names if not name.startswith(("_Z", "shim_"))}

    def run(
        self, launch: Launch, given: Sequence[np.ndarray | None], out: tuple[tuple[int, ...], type], *, seed: int = 0,
        workers: int = 2, is_whole: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """The output, of this shape and type, which is the last pointer; those of `given` come before, None for 0.

        The seed decides the order of blocks, warps and lanes, and where shared memory starts. Where the output
        `is_whole`, every byte of it has to be written; else it is memory that may be larger than what a kernel makes.
        """
        shape, datatype = out
        with self._buffers([*given, np.empty(shape, datatype)], _OUTPUT if is_whole else _PARTLY_WRITTEN) as pointers:
            self._launch(launch, pointers, seed, workers)
            size = int(np.prod(shape)) * np.dtype(datatype).itemsize
            return np.frombuffer(ctypes.string_at(pointers[-1], size), datatype).reshape(shape)

    @contextmanager
    def _buffers(self, arrays: Sequence[np.ndarray | None], last: int) -> Iterator[list[int]]:
        """Addresses of copies, the last one an output of this use."""
        pointers = [
            0 if array is None else self._library.shim_allocate(array.nbytes, last if array is arrays[-1] else _INPUT)
            for array in arrays
        ]
        try:
            for pointer, array in zip(pointers[:-1], arrays[:-1], strict=True):
                if array is not None:
                    ctypes.memmove(pointer, np.ascontiguousarray(array).ctypes.data, array.nbytes)
            yield pointers
        finally:
            for pointer in pointers:
                self._library.shim_free(pointer)

    def _launch(self, launch: Launch, pointers: Sequence[int], seed: int, workers: int) -> None:
        arguments = launch.arguments(pointers)
        expected = self._library.shim_arguments_bytes()
        assert len(arguments) == expected, f"{len(arguments)} bytes of arguments; the kernel takes {expected}"
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        failed = self._library.shim_run(
            self._library.shim_call, getattr(self._library, launch.entry), arguments, (ctypes.c_int * 3)(*launch.grid),
            launch.block, launch.shared_bytes, seed, workers, message, _MESSAGE_BYTES,
        )  # fmt: skip
        if failed:
            raise HostFault(message.value.decode())


def _compile(*arguments: str) -> None:
    # without the sanitizers of this process: they are of what it loads
    own = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    done = subprocess.run([COMPILER, *_FLAGS, *arguments], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
