"""The kernels of another processor: cross-compiled into a program, and called through an emulator."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.plugins.native import geometry
from engines.plugins.ops import ConvAttributes, GemmAttributes, words_of

__all__ = ["COMPILER", "EMULATOR", "Emulated", "build_driver", "missing"]

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
_SOURCE = Path(__file__).parent / "native"
_KERNELS, _CONVOLVE, _THRESHOLD, _PACK, _PRODUCT = range(5)


def missing() -> list[str]:
    """What is not installed here and must be."""
    return [tool for tool in ("cmake", COMPILER, EMULATOR) if shutil.which(tool) is None]


def _environment() -> dict[str, str]:
    """Without the sanitizers of this process, which are of its own processor."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


def build_driver(folder: Path, *, cross: bool = True) -> Path:
    """The program, compiled for aarch64, or else for this processor; objects lie below its folder."""
    target = ("SYSTEM_NAME=Linux", "SYSTEM_PROCESSOR=aarch64", f"CXX_COMPILER={COMPILER}") if cross else ()
    configure = ["cmake", "-S", _SOURCE, "-B", folder, *(f"-DCMAKE_{value}" for value in target)]
    for command in (configure, ["cmake", "--build", folder, "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "driver"


class Emulated:
    """What `Native` offers, by a program that an emulator runs; a context, which ends with the program."""

    def __init__(self, driver: Path) -> None:
        self._process = subprocess.Popen(
            [EMULATOR, driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )

    def __enter__(self) -> Emulated:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def kernels(self) -> tuple[str, ...]:
        return tuple(name.removesuffix("-") for name in self._names())

    def usable(self) -> tuple[str, ...]:
        return tuple(name for name in self._names() if not name.endswith("-"))

    def _names(self) -> list[str]:
        return self._ask(struct.pack("<i", _KERNELS)).decode().split()

    def pack(self, x: np.ndarray, thresholds: np.ndarray, *, strict: bool = False) -> np.ndarray:
        channels, places = x.shape
        out = np.empty((places, words_of(channels)), np.int32)
        given = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(thresholds, np.float32)
        return self._call(_PACK, 0, [channels, int(strict)], places, given, out)

    def conv2d(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray,
        activation: np.ndarray, attributes: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        shape, sizes = geometry(bits, weights, attributes)
        out = np.empty((len(bits), len(weights), *sizes), np.float32)
        given = bits, weights, multiplier, bias, activation
        return self._call(_CONVOLVE, self.kernels().index(kernel), shape, len(bits), given, out)

    def gemm(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray,
        activation: np.ndarray, attributes: GemmAttributes,
    ) -> np.ndarray:  # fmt: skip
        pixels, filters = bits[None, None], weights[:, None, None]
        shape, _ = geometry(pixels, filters, attributes.as_convolution())
        out = np.empty((len(bits), len(weights)), np.float32)
        given = pixels, filters, multiplier, bias, activation
        return self._call(_PRODUCT, self.kernels().index(kernel), shape, 1, given, out)

    def threshold2d(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray,
        attributes: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        shape, sizes = geometry(bits, weights, attributes)
        out = np.empty((len(bits), *sizes, words_of(len(weights))), np.int32)
        given = bits, weights, thresholds, flips
        return self._call(_THRESHOLD, self.kernels().index(kernel), shape, len(bits), given, out)

    def _call(
        self, what: int, kernel: int, shape: Sequence[int], rows: int, given: Sequence[np.ndarray], out: np.ndarray
    ) -> np.ndarray:
        """`given` are FP32 or INT32 arrays, up to five; returns the answer in the shape and type of `out`."""
        parts = [struct.pack(f"<3i{len(shape)}i2q", what, kernel, len(shape), *shape, rows, out.nbytes)]
        for i in range(5):
            data = given[i].tobytes() if i < len(given) else b""
            parts += [struct.pack("<q", len(data)), data]
        return np.frombuffer(self._ask(b"".join(parts)), out.dtype).reshape(out.shape)

    def _ask(self, request: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request)
        self._process.stdin.flush()
        head = self._process.stdout.read(8)
        assert len(head) == 8, f"the driver ended with {self._process.wait()}"
        (count,) = struct.unpack("<q", head)
        assert count >= 0, "this kernel is not usable"
        return self._process.stdout.read(count)
