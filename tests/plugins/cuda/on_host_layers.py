"""Binary layers by the GPU's kernels on this processor: arrays as operators have them, launches as plugins do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.plugins.cuda.launches import (
    TACTICS,
    Launch,
    OutType,
    Tactic,
    convolve_launch,
    pack_launch,
    pool_launch,
)
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import ConvAttributes, PoolAttributes, words_of
from tests.plugins.cuda.on_host import CUDA, HostBuild, HostKernels

__all__ = ["TACTICS", "HostLayers"]


class HostLayers:
    """Each call runs in another order of blocks, warps and lanes; the same calls run in the same orders."""

    def __init__(self, build: HostBuild, sm: int, *, sources: Path = CUDA, flags: Sequence[str] = ()) -> None:
        self._build, self._sm, self._sources, self._flags = build, sm, sources, flags
        self._seed = 0
        self.launched: set[str] = set()

    def kernels(self, source: str) -> HostKernels:
        """Of one .cu file, by its name."""
        return self._build.kernels(self._sources / f"{source}.cu", self._sm, flags=self._flags)

    def pack(self, x: np.ndarray, thresholds: np.ndarray, *, strict: bool = False) -> np.ndarray:
        """FP32 or FP16 [rows, channels, places...] -> INT32 [rows, places..., words]."""
        launch = pack_launch(x.shape, "FP16" if x.dtype == np.float16 else "FP32", strict=strict)
        shape = x.shape[0], *x.shape[2:], words_of(x.shape[1])
        return self._run(launch, [x, thresholds], shape, np.int32)

    def max_pool(self, bits: np.ndarray, own: PoolAttributes) -> np.ndarray:
        """INT32 [rows, height, width, words] -> INT32 [rows, height', width', words]."""
        sizes = _sizes(bits, own.kernel_shape, own)
        return self._run(pool_launch(bits.shape, own), [bits], (len(bits), *sizes, bits.shape[3]), np.int32)

    def floats(
        self, tactic: Tactic, bits: np.ndarray, weights: np.ndarray, epilogue: Sequence[np.ndarray],
        own: ConvAttributes, out: OutType = "FP32",
    ) -> np.ndarray:  # fmt: skip
        """FP32 or FP16 [rows, filters, height', width']; `epilogue` is multiplier, bias and activation."""
        multiplier, bias, activation = epilogue
        kernel, filters = weights.shape[1:3], len(weights)
        launch = convolve_launch(bits.shape, filters, kernel, own, out, activation.shape[1], tactic)
        given = [bits, *_packed(weights, own), multiplier, bias, activation, None, None]
        shape = len(bits), filters, *_sizes(bits, kernel, own)
        return self._run(launch, given, shape, np.float16 if out == "FP16" else np.float32)

    def bits(
        self, tactic: Tactic, bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray,
        own: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        """INT32 [rows, height', width', words]."""
        kernel, filters = weights.shape[1:3], len(weights)
        launch = convolve_launch(bits.shape, filters, kernel, own, "BITS", 1, tactic)
        given = [bits, *_packed(weights, own), None, None, None, thresholds, flips]
        return self._run(launch, given, (len(bits), *_sizes(bits, kernel, own), words_of(filters)), np.int32)

    def _run(
        self, launch: Launch, given: Sequence[np.ndarray | None], shape: tuple[int, ...], datatype: type
    ) -> np.ndarray:
        self._seed += 1
        self.launched.add(launch.entry)
        return self.kernels(launch.source).run(launch, given, (shape, datatype), seed=self._seed)


def _packed(weights: np.ndarray, own: ConvAttributes) -> tuple[np.ndarray, np.ndarray]:
    return gpu_weights(weights, own.group), gpu_sums(weights, own.channels // own.group)


def _sizes(bits: np.ndarray, kernel: Sequence[int], own: ConvAttributes | PoolAttributes) -> list[int]:
    """Height and width of what comes out."""
    return [
        (size + own.pads[i] + own.pads[i + 2] - (kernel[i] - 1) * own.dilations[i] - 1) // own.strides[i] + 1
        for i, size in enumerate(bits.shape[1:3])
    ]
