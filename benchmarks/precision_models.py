"""The models whose accuracy is held against FP32: three trained by others, with real inputs, and the three samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from engines.spec import Spec
from tests.datasets import letter_recognition
from tests.support.real_models import REAL_MODELS, RealModel

__all__ = ["MODELS"]

_REPOSITORY = Path(__file__).parent.parent / "model_repo"
_SPEC = Spec(metric="top1", accuracy_budget=0.01)
_CALIBRATION = 100
_JUDGED = 2000


def _fashion_cnn() -> RealModel:
    with np.load(_REPOSITORY / "fashion_cnn" / "heldout.npz") as held:
        pictures, labels = held["image"].astype(np.float32) / 255, held["labels"]
    return _sample("fashion_cnn", "image", pictures, labels)


def _japanese_vowels() -> RealModel:
    """A file of samples has one length: utterances are cut to the shortest."""
    with np.load(_REPOSITORY / "japanese_vowels" / "heldout.npz") as held:
        frames, labels = held["frames"][:, : held["lengths"].min()], held["labels"]
    return _sample("japanese_vowels", "frames", np.ascontiguousarray(frames), labels)


def _letter_mlp() -> RealModel:
    features, labels = letter_recognition("test")
    return _sample("letter_mlp", "features", features[:_JUDGED], labels[:_JUDGED])


def _sample(name: str, tensor: str, rows: np.ndarray, labels: np.ndarray) -> RealModel:
    """Calibrated on some, judged on the others; of letters, some have the very same features."""
    model = onnx.load(_REPOSITORY / name / "1" / "model.onnx")
    seen = {row.tobytes() for row in rows[:_CALIBRATION]}
    others = [i for i, row in enumerate(rows) if row.tobytes() not in seen]
    judging = {tensor: rows[others], "labels": labels[others]}
    return RealModel(f"sample {name}", model, _SPEC, {tensor: rows[:_CALIBRATION]}, judging)


MODELS: tuple[Callable[[], RealModel], ...] = (*REAL_MODELS, _fashion_cnn, _japanese_vowels, _letter_mlp)
