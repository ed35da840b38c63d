"""What the answers of the next layers lose with a channel, measured on samples.

The channel c reaches output k of a layer as  W[k, c] . p_c,  where p_c is what the layer multiplies by at one position:
the kernel's window over the channel (with the zeros of the padding), or a channel's inputs of a product. What is lost
with it, once its mean has gone into the bias, is

    sum over k of  E (W[k, c] . (p_c - E p_c))^2  =  sum over l, l' of  (W_c W_c^T)[l, l'] Cov(p_c)[l, l'],

W_c = W[:, c]^T: [positions of the window, outputs]; so moments of windows are enough, and one run of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from engines.passes.channel_groups import Group
from engines.passes.channel_merge import Together
from engines.passes.layerwise import Walk
from engines.passes.weighted import Weighted, attribute_of
from engines.reference import Arrays

__all__ = ["Measured", "can_be_measured", "measured_effects"]

_MOMENT_BYTES = 2**28
"""For the second moments of the windows of one layer, at most."""
_WINDOW_BYTES = 2**26
"""Windows that are copied at once."""


def can_be_measured(group: Group) -> bool:
    """Whether the moments of every layer that reads the group fit into 256 MiB."""
    return all(group.channels * _window(layer, span) ** 2 * 8 <= _MOMENT_BYTES for layer, span in group.consumers)


class Measured(NamedTuple):
    """`effects` of each group [channels], float64; `together` by the name of the value that layers read."""

    effects: list[np.ndarray]
    together: dict[str, Together]


def measured_effects(model: ModelProto, groups: Sequence[Group], samples: Iterable[Arrays]) -> Measured | None:
    """The share of a channel in what a layer would lose with all channels of its group, added up over the layers that
    read it, and how channels go together. None where there are no samples.

    One sample is in memory at a time.
    """
    measures: dict[str, list[_Moments]] = {}
    by_group = [[_Moments(layer, group.channels, span) for layer, span in group.consumers] for group in groups]
    for one in (one for several in by_group for one in several):
        measures.setdefault(one.node.input[0], []).append(one)
    together = {name: Together(several[0].channels) for name, several in measures.items()}
    walk = Walk(model, measures)

    def see(name: str, arrays: list[np.ndarray]) -> None:
        for one in measures[name]:
            one.add(arrays[0])
        together[name].add(measures[name][0].by_channel(arrays[0]))

    count = 0
    for count, sample in enumerate(samples, 1):  # noqa: B007
        walk([sample], see)
    if not count:
        return None
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    effects = [
        np.sum([one.shares(numpy_helper.to_array(weights[one.layer.weights])) for one in several], axis=0)
        for several in by_group
    ]
    return Measured(effects, together)


class _Moments:
    """First and second moments of the windows of each channel that a layer reads."""

    def __init__(self, layer: Weighted, channels: int, span: int) -> None:
        self.layer, self.node, self.channels = layer, layer.node, channels
        size = _window(layer, span)
        self._count, self._sums = 0, np.zeros((channels, size))
        self._products = np.zeros((channels, size, size))

    def add(self, array: np.ndarray) -> None:
        size = self._sums.shape[1]
        windows = self._windows(array.astype(np.float32, copy=False))
        positions = windows.size // max(1, self.channels * size)
        self._count += positions
        step = max(1, _WINDOW_BYTES // max(1, 4 * size * positions))
        for start in range(0, self.channels, step):
            part = slice(start, start + step)
            chosen = np.ascontiguousarray(windows[part])
            flat = chosen.reshape(len(chosen), size, positions)
            self._sums[part] += flat.sum(axis=2, dtype=np.float64)
            self._products[part] += flat @ flat.transpose(0, 2, 1)

    def by_channel(self, array: np.ndarray) -> np.ndarray:
        """[channels, positions], float32."""
        rows = array.astype(np.float32, copy=False)
        if self.node.op_type == "Conv":
            return np.moveaxis(rows, 1, 0).reshape(self.channels, -1)
        return self._windows(rows).reshape(self.channels, -1)

    def _windows(self, array: np.ndarray) -> np.ndarray:
        """A view [channels, the window's axes, the positions' axes]."""
        if self.node.op_type != "Conv":
            size = self._sums.shape[1]
            return array.reshape(-1, self.channels, size).transpose(1, 2, 0)
        kernel = self.layer.shape[2:]
        axes = len(kernel)
        strides = attribute_of(self.node, "strides", [1] * axes)
        dilations = attribute_of(self.node, "dilations", [1] * axes)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        padded = np.pad(array, [(0, 0), (0, 0), *_padding(self.node, array.shape[2:], reach, strides)])
        views = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))
        steps = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
        spread = views[tuple(steps)]  # [samples, channels, positions, window]
        return np.moveaxis(spread, [1, *range(2 + axes, 2 + 2 * axes)], [0, *range(1, 1 + axes)])

    def shares(self, weights: np.ndarray) -> np.ndarray:
        """[channels], their sum 1, or all 0 where no channel varies."""
        size = self._sums.shape[1]
        first = np.moveaxis(weights.astype(np.float64), self.layer.in_axis, 0)
        if self.node.op_type == "Conv":  # [channels, outputs, window]
            rows = np.moveaxis(first.reshape(self.channels, -1, size), 1, 2)
        else:
            rows = first.reshape(self.channels, size, -1)
        mean = self._sums / max(1, self._count)
        covariance = self._products / max(1, self._count) - mean[:, :, None] * mean[:, None, :]
        lost = np.maximum(0.0, ((rows @ rows.transpose(0, 2, 1)) * covariance).sum(axis=(1, 2)))
        total = lost.sum()
        return lost / total if total > 0 else np.zeros_like(lost)


def _window(layer: Weighted, span: int) -> int:
    return math.prod(layer.shape[2:]) if layer.node.op_type == "Conv" else span


def _padding(
    node: NodeProto, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros (before, after) each axis of the positions; where the node leaves that to a rule, so that there are
    ceil(size / stride) positions.
    """
    rule = attribute_of(node, "auto_pad", b"NOTSET")
    if rule == b"NOTSET":
        pads = attribute_of(node, "pads", [0] * 2 * len(sizes))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    if rule == b"VALID":
        return [(0, 0)] * len(sizes)
    missing = [
        max(0, (math.ceil(size / step) - 1) * step + far - size)
        for size, far, step in zip(sizes, reach, strides, strict=True)
    ]
    less = [(zeros // 2, zeros - zeros // 2) for zeros in missing]
    return less if rule == b"SAME_UPPER" else [(after, before) for before, after in less]
