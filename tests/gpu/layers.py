"""Binary layers by the plugins of TensorRT: arrays as the operators have them, run on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engines.plugins.cuda.launches import OutType, Tactic
from engines.plugins.cuda.layout import gpu_sums, gpu_weights
from engines.plugins.ops import ConvAttributes, GemmAttributes, PoolAttributes, places_after, words_of
from tests.gpu.plugins import Plugins

__all__ = ["PluginLayers"]


class PluginLayers:
    """What `tests.plugins.cuda.on_host_layers.HostLayers` offers, by creators, fields, plugins and their launches."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def pack(self, x: np.ndarray, thresholds: np.ndarray, *, strict: bool = False) -> np.ndarray:
        """FP32 or FP16 [rows, channels, places...] -> INT32 [rows, places..., words]."""
        shape = x.shape[0], *x.shape[2:], words_of(x.shape[1])
        return self._run("BinaryPack", {"strict": int(strict)}, [x, thresholds], shape, np.int32)

    def max_pool(self, bits: np.ndarray, own: PoolAttributes) -> np.ndarray:
        """INT32 [rows, height, width, words] -> INT32 [rows, height', width', words]."""
        places = places_after(bits.shape[1:3], own.kernel_shape, own)
        return self._run("BinaryMaxPool", own.values(), [bits], (len(bits), *places, bits.shape[3]), np.int32)

    def floats(
        self, tactic: Tactic | None, bits: np.ndarray, weights: np.ndarray, epilogue: Sequence[np.ndarray],
        own: ConvAttributes, out: OutType = "FP32",
    ) -> np.ndarray:  # fmt: skip
        """FP32 or FP16 [rows, filters, height', width']; `epilogue` is multiplier, bias and activation."""
        half, kernel = out == "FP16", weights.shape[1:3]
        given = [bits, *_laid_out(weights, own), *epilogue]
        shape = len(bits), len(weights), *places_after(bits.shape[1:3], kernel, own)
        attributes = {**own.values(), "kernel_shape": kernel, "half": int(half)}
        return self._run("BinaryConv2d", attributes, given, shape, np.float16 if half else np.float32, tactic)

    def bits(
        self, tactic: Tactic | None, bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray,
        own: ConvAttributes,
    ) -> np.ndarray:  # fmt: skip
        """INT32 [rows, height', width', words]."""
        kernel = weights.shape[1:3]
        given = [bits, *_laid_out(weights, own), thresholds, flips]
        shape = len(bits), *places_after(bits.shape[1:3], kernel, own), words_of(len(weights))
        attributes = {**own.values(), "kernel_shape": kernel}
        return self._run("BinaryThreshold2d", attributes, given, shape, np.int32, tactic)

    def product(
        self, tactic: Tactic | None, bits: np.ndarray, weights: np.ndarray, epilogue: Sequence[np.ndarray],
        own: GemmAttributes, out: OutType = "FP32",
    ) -> np.ndarray:  # fmt: skip
        """INT32 [rows, words] and [filters, words] -> FP32 or FP16 [rows, filters]."""
        half = out == "FP16"
        given = [bits, *_laid_out(weights[:, None, None], own.as_convolution()), *epilogue]
        attributes, shape = {**own.values(), "half": int(half)}, (len(bits), len(weights))
        return self._run("BinaryGemm", attributes, given, shape, np.float16 if half else np.float32, tactic)

    def product_bits(
        self, tactic: Tactic | None, bits: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, flips: np.ndarray,
        own: GemmAttributes,
    ) -> np.ndarray:  # fmt: skip
        """INT32 [rows, words] and [filters, words] -> INT32 [rows, words of the filters]."""
        given = [bits, *_laid_out(weights[:, None, None], own.as_convolution()), thresholds, flips]
        shape = len(bits), words_of(len(weights))
        return self._run("BinaryThreshold", own.values(), given, shape, np.int32, tactic)

    def _run(
        self, operator: str, attributes: dict[str, Any], given: Sequence[np.ndarray], shape: tuple[int, ...],
        datatype: type, tactic: Tactic | None = None,
    ) -> np.ndarray:  # fmt: skip
        plugin = self._plugins.made(operator, attributes)
        number = 0 if tactic is None else tactic.number
        found: np.ndarray = self._plugins.run(plugin, given, (shape, datatype), number)
        return found


def _laid_out(weights: np.ndarray, own: ConvAttributes) -> tuple[np.ndarray, np.ndarray]:
    return gpu_weights(weights, own.group), gpu_sums(weights, own.channels // own.group)
