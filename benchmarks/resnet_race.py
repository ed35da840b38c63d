"""Two engines of ResNet-18 side by side: how near their answers are, and how fast each is."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import openvino as ov

from benchmarks.pictures import drawn_pictures
from engines.targets.openvino import runner
from engines.targets.openvino_race import Pace, race

__all__ = ["IMAGES", "Compared", "compared", "cosine_less_mean"]

IMAGES = 64
RACE_S = 20.0


class Compared(NamedTuple):
    """Answers to pictures that no range was measured on, and paces turn by turn."""

    cosine: float
    fp32: Pace
    int8: Pace


def compared(fp32: ov.CompiledModel, int8: ov.CompiledModel) -> Compared:
    asked = drawn_pictures(IMAGES, seed=1)
    answers = (runner(engine, ["logits"])({"image": asked})["logits"] for engine in (fp32, int8))
    cosine = cosine_less_mean(*answers)
    return Compared(cosine, *race([fp32, int8], functools.partial(_first, asked), batched=True, budget_s=RACE_S))


def _first(images: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    return {"image": images[:rows]}


def cosine_less_mean(a: np.ndarray, b: np.ndarray) -> float:
    """Of answers [rows, classes], each less its mean over the rows: what inputs change, not what all have in common."""
    a, b = (one.astype(np.float64) - one.mean(axis=0, dtype=np.float64) for one in (a, b))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
