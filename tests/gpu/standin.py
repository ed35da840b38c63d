"""Tests that ask for a GPU, run over a stand-in for the driver's library: `python -m tests.gpu.standin LIBRARY`, with
the library's folder in LD_LIBRARY_PATH, and then pytest's arguments; or `changes`, the kind of
kernels, and a folder for them.

So what `device.py` tells the driver is run where there is no GPU: memory, streams, captures, modules. Launches go to
the kernels on the host. It shows nothing of how a GPU runs them.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.plugins.cuda.launches import POINTERS, TACTICS, Launch, convolve_launch, pack_launch, pool_launch
from engines.plugins.ops import ConvAttributes, PoolAttributes
from tests.gpu import leaking, test_leaks
from tests.gpu.device import Gpu
from tests.gpu.plugins import Plugins
from tests.plugins.cuda.on_host import CUDA, HostBuild

_SM = 86
_ONE_OF_EACH = (
    pack_launch((1, 1), "FP32", strict=False),
    convolve_launch((1, 1, 1, 1), 1, (1, 1), ConvAttributes(channels=1), "BITS", 1, TACTICS[0]),
    pool_launch((1, 1, 1, 1), PoolAttributes(kernel_shape=(1, 1))),
)
_ARGUMENT_BYTES = {launch.source: len(launch.arguments([0] * POINTERS[launch.source])) for launch in _ONE_OF_EACH}
_Launched = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p
)


def _register(library: ctypes.CDLL) -> None:
    library.standin_set_argument.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    for number, (source, size) in enumerate(_ARGUMENT_BYTES.items()):
        library.standin_set_argument(number, source.encode(), size)


class _Launches:
    """What the stand-in calls for each. What goes wrong is kept, for C has no exceptions."""

    def __init__(self, library: ctypes.CDLL, build: HostBuild) -> None:
        self._library, self._build = library, build
        self.wrong: list[BaseException] = []
        library.standin_size_of.restype = ctypes.c_size_t
        library.standin_size_of.argtypes = [ctypes.c_uint64]
        self._given = _Launched(self._launched)
        library.standin_set_launch(self._given)

    def _launched(self, entry: bytes, grid: Any, block: int, shared_bytes: int, argument: int) -> None:
        try:
            self._run(entry.decode(), tuple(grid[:3]), block, shared_bytes, argument)
        except BaseException as error:
            self.wrong.append(error)

    def _run(self, entry: str, grid: tuple[int, ...], block: int, shared_bytes: int, argument: int) -> None:
        source = entry.partition("_")[0]
        kernels, count = self._build.kernels(CUDA / f"{source}.cu", _SM), POINTERS[source]
        pointers = [int(one) for one in (ctypes.c_uint64 * count).from_address(argument)]
        *given, out = (self._memory(pointer) for pointer in pointers)
        assert out is not None, "the output lies nowhere"
        numbers = ctypes.string_at(argument + 8 * count, _ARGUMENT_BYTES[source] - 8 * count)
        launch = Launch(source, entry, grid, block, shared_bytes, numbers)  # type: ignore[arg-type]
        out[...] = kernels.run(launch, given, (out.shape, np.uint8), is_whole=False)

    def _memory(self, pointer: int) -> np.ndarray | None:
        if not pointer:
            return None
        size = self._library.standin_size_of(pointer)
        assert size, f"{pointer:#x} is no memory of the device's"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))


def changes(library: str, kind: str, folder: str) -> int:
    """Change shapes, with a launch each that nothing runs, and print what has grown of all that the stand-in sees."""
    standin = ctypes.CDLL(library)
    _register(standin)
    standin.standin_ignore_launches()
    count = test_leaks.CHANGES if kind == "Kernels" else test_leaks.CHANGES // 5
    with (
        contextlib.closing(Gpu(Path(folder))) as gpu,
        Plugins(gpu, kernels=getattr(leaking, kind)) as plugins,
    ):
        print(test_leaks.run_changes(plugins, count, run_each=1, is_looked_at=False))
    print(f"{standin.standin_left()} things are left on the device")
    return 0


def main(library: str, arguments: list[str]) -> int:
    """pytest's exit code, or 1 where the device was left with something that nobody gave back."""
    standin = ctypes.CDLL(library)
    _register(standin)
    with tempfile.TemporaryDirectory() as name:
        launches = _Launches(standin, HostBuild(Path(name)))
        code = int(pytest.main(arguments))
    print(f"{standin.standin_left()} things are left on the device, {len(launches.wrong)} launches went wrong")
    for error in launches.wrong[:1]:
        raise error
    return code or int(standin.standin_left() > 0)


if __name__ == "__main__":
    is_changes = sys.argv[2] == "changes"
    sys.exit(changes(sys.argv[1], *sys.argv[3:]) if is_changes else main(sys.argv[1], sys.argv[2:]))
