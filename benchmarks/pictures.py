"""Drawn pictures that differ as photographs do, for networks that nobody trained: noise they would all answer alike."""

from __future__ import annotations

import numpy as np

__all__ = ["drawn_pictures"]

_GRIDS = (2, 4, 7, 14, 28, 56, 112, 224)
"""Squares a side. Their contrast falls with the root of their number, as in pictures of things (Field 1987, "Relations
between the statistics of natural images", finds amplitudes that fall with the frequency)."""
_CONTRASTS = 0.25, 2.0


def drawn_pictures(count: int, seed: int) -> np.ndarray:
    """float32 [count, 3, 224, 224] with squares of all sizes, each picture with its own contrast and mean colour."""
    rng = np.random.default_rng(seed)
    return np.stack([_picture(rng) for _ in range(count)])


def _picture(rng: np.random.Generator) -> np.ndarray:
    side = _GRIDS[-1]
    picture = np.zeros((3, side, side), np.float32)
    for grid in _GRIDS:
        squares = rng.standard_normal((3, grid, grid), dtype=np.float32) / np.float32(np.sqrt(grid))
        picture += squares.repeat(side // grid, axis=1).repeat(side // grid, axis=2)
    picture = (picture - picture.mean()) / picture.std()
    colour = rng.standard_normal((3, 1, 1), dtype=np.float32)
    return picture * np.float32(rng.uniform(*_CONTRASTS)) + colour
