"""Let the channels that are kept stand in for those that are removed, as far as they go together.

    a_r = sum over kept c of A[r, c] a_c + constant + rest,   A = Cov[r, kept] (Cov[kept, kept] + ridge)^-1,

the regression of each removed channel on the kept ones over all samples and positions. A layer that reads them gets

    W'[:, c] = W[:, c] + sum over removed r of A[r, c] W[:, r],

one number for a whole window or, behind a Flatten, for all inputs of a channel. The constant is left to the bias, which
is corrected afterwards. (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", solve for every
weight of the next layer instead; this needs the moments of channels alone.)
"""

from __future__ import annotations

import numpy as np

__all__ = ["Together"]

_RIDGE = 0.01
_MOST_CHANNELS = 4096
"""Of more, second moments would take over 128 MiB: nothing is merged."""


class Together:
    """How the channels of a value go together. Arrays are added with their channels first: [channels, positions]."""

    def __init__(self, channels: int) -> None:
        self._is_on = channels <= _MOST_CHANNELS
        size = channels if self._is_on else 0
        self._around: np.ndarray | None = None
        self._count, self._sums, self._products = 0, np.zeros(size), np.zeros((size, size))
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """`rows` float32."""
        if not self._is_on:
            return
        if self._around is None:  # moments around a value near the mean: less is lost to rounding
            self._around = rows.mean(axis=1, keepdims=True)
        self._waiting.append(rows - self._around)
        if sum(part.shape[1] for part in self._waiting) >= len(rows):
            self._take_waiting()

    def _take_waiting(self) -> None:
        """Products of few positions would cost more in going over the sums than in being made."""
        off = np.concatenate(self._waiting, axis=1)
        self._waiting = []
        self._count += off.shape[1]
        self._sums += off.sum(axis=1, dtype=np.float64)
        self._products += off @ off.T

    def merged(self, weights: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The weights [channels, ...] (float64) of which only those of the channels `kept` will be used."""
        gone = np.setdiff1d(np.arange(len(weights)), kept)
        if self._waiting:
            self._take_waiting()
        if not self._is_on or not self._count or not gone.size:
            return weights
        mean = self._sums / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        own = covariance[np.ix_(kept, kept)]
        # few positions for many channels would fit their noise
        ridge = (_RIDGE + len(kept) / self._count) * np.trace(own) / len(kept)
        if not np.isfinite(ridge) or ridge <= 0:
            return weights
        shares = np.linalg.solve(own + ridge * np.eye(len(kept)), covariance[np.ix_(kept, gone)])
        result = weights.copy()
        result[kept] += np.tensordot(shares, weights[gone], axes=1)
        return result
