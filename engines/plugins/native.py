"""The kernels of the compiled extension: which there are, which ran, and each alone (for tests and benchmarks)."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from engines.errors import EngineError
from engines.plugins.extension import extension_path
from engines.plugins.ops import ConvAttributes, GemmAttributes, words_of

__all__ = ["Native", "geometry"]


class Native:
    """The library, by ctypes. Raises EngineError where nothing was compiled, or it cannot be loaded."""

    def __init__(self) -> None:
        import openvino  # noqa: F401 - brings the libraries that the extension needs into the process

        path = extension_path()
        if path is None:
            raise EngineError("no native kernels: nothing was compiled when bitserve was installed")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineError(f"the native kernels cannot be loaded: {str(error).rpartition('/')[2]}") from error
        self._library.bnn_kernel_name.restype = ctypes.c_char_p
        self._library.bnn_chosen.restype = ctypes.c_char_p
        self._library.bnn_kernel_runs.restype = ctypes.c_uint64
        self._library.bnn_product_rate.restype = ctypes.c_double

    def kernels(self) -> tuple[str, ...]:
        """All that were compiled, the fastest first."""
        found = map(self._library.bnn_kernel_name, itertools.count())
        return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, found))

    def usable(self) -> tuple[str, ...]:
        """Those that this processor has."""
        return tuple(name for i, name in enumerate(self.kernels()) if self._library.bnn_kernel_usable(i))

    @property
    def chosen(self) -> str:
        """The one that layers run."""
        name: bytes = self._library.bnn_chosen()
        return name.decode()

    def runs(self) -> dict[str, int]:
        """How many layers each has run since the library was loaded."""
        return {name: int(self._library.bnn_kernel_runs(i)) for i, name in enumerate(self.kernels())}

    def pin(self, name: str) -> None:
        """Let layers run this one; "" = the fastest. Raises EngineError where this processor has it not."""
        if not self._library.bnn_pin(name.encode()):
            raise EngineError(f"no kernel {name!r} here; expected one of {', '.join(self.usable())}")

    def product_rate(self, kernel: str, places: int, channels: int, words: int, runs: int) -> float:
        """Multiply-accumulates a cycle on one thread, of rows and weights that lie as the kernel wants them: the best.

        Cycles are told by additions that wait for one another.
        """
        rate = float(self._library.bnn_product_rate(self.kernels().index(kernel), places, channels, words, runs))
        if not rate:
            raise EngineError(f"kernel {kernel!r} does not run on this processor")
        return rate

    def pack(self, x: np.ndarray, thresholds: np.ndarray, *, strict: bool = False) -> np.ndarray:
        """FP32 [channels, places...] -> INT32 [places..., words], as `reference.binary_pack` of one row."""
        channels, places = x.shape[0], x.shape[1:]
        bits = np.empty((*places, words_of(channels)), np.int32)
        count = int(np.prod(places, dtype=np.int64))
        self._library.bnn_pack(
            _floats(x), _floats(thresholds), int(strict), channels, ctypes.c_size_t(count), _address(bits)
        )
        return bits

    def conv2d(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray,
        activation: np.ndarray, attributes: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        """As `reference.binary_conv2d`, by this kernel, on one thread."""
        shape, sizes = geometry(bits, weights, attributes)
        out = np.empty((len(bits), len(weights), *sizes), np.float32)
        further = *_epilogue(multiplier, bias, activation), 0, _address(out)
        self._call(self._library.bnn_convolve, kernel, shape, bits, weights, further)
        return out

    def gemm(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, multiplier: np.ndarray, bias: np.ndarray,
        activation: np.ndarray, attributes: GemmAttributes,
    ) -> np.ndarray:  # fmt: skip
        """As `reference.binary_gemm`, in the same way."""
        pixels, filters = bits[None, None], weights[:, None, None]
        shape, _ = geometry(pixels, filters, attributes.as_convolution())
        out = np.empty((len(bits), len(weights)), np.float32)
        further = *_epilogue(multiplier, bias, activation), 1, _address(out)
        self._call(self._library.bnn_convolve, kernel, shape, pixels, filters, further)
        return out

    def threshold2d(
        self, kernel: str, bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray,
        attributes: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        """As `reference.binary_threshold2d`, in the same way."""
        shape, sizes = geometry(bits, weights, attributes)
        out = np.empty((len(bits), *sizes, words_of(len(weights))), np.int32)
        further = _whole(thresholds), _whole(flips), _address(out)
        self._call(self._library.bnn_threshold, kernel, shape, bits, weights, further)
        return out

    def _call(
        self,
        function: Any,
        kernel: str,
        shape: list[int],
        bits: np.ndarray,
        weights: np.ndarray,
        further: Iterable[Any],
    ) -> None:
        done = function(
            self.kernels().index(kernel), (ctypes.c_int * len(shape))(*shape), _whole(bits), ctypes.c_size_t(len(bits)),
            _whole(weights), *further,
        )  # fmt: skip
        if not done:
            raise EngineError(f"kernel {kernel!r} does not run on this processor")


def geometry(bits: np.ndarray, weights: np.ndarray, own: ConvAttributes) -> tuple[list[int], list[int]]:
    """The fields of the kernels' Geometry in their order, and the height and width of what comes out."""
    _, height, width, _ = bits.shape
    filters, high, wide, _ = weights.shape
    (a, b), (c, d), (top, left, bottom, right) = own.strides, own.dilations, own.pads
    sizes = [
        (height + top + bottom - (high - 1) * c - 1) // a + 1, (width + left + right - (wide - 1) * d - 1) // b + 1,
    ]  # fmt: skip
    shape = [own.channels, height, width, filters, own.group, high, wide, a, b, c, d, *own.pads, own.pad_value]
    shape.append(int(own.low == 0))
    return shape, sizes


def _epilogue(multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray) -> tuple[Any, ...]:
    return _floats(multiplier), _floats(bias), _floats(activation), activation.shape[1]


def _whole(array: np.ndarray) -> Any:
    return _address(np.ascontiguousarray(array, np.int32))


def _address(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def _floats(array: np.ndarray) -> Any:
    """The pointer keeps its array alive."""
    return _address(np.ascontiguousarray(array, np.float32))
