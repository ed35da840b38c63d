"""Trained models out of packages with real inputs, as a build takes them: calibration, validation, what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from engines.reference import Arrays, Reference
from engines.spec import Spec
from tests.packaged import from_wheel
from tests.support.efficientnet import SIDE, efficientnet_lite0
from tests.support.real_inputs import (
    LABELLED,
    SAMPLE_HZ,
    UNLABELLED,
    crops,
    crops_around,
    lines_of_text,
    photograph,
    speech,
)

__all__ = ["REAL_MODELS", "RealModel", "image_classifier", "text_direction", "voice_activity"]

_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_SILERO = "silero-vad==6.2.3"
_WINDOW, _CONTEXT = 512, 64
_LOUD = 0.01
"""Root mean square of the clean speech in a window that counts as spoken; pauses have none."""
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.", "She sells sea shells by the sea shore.",
    "A build compares what it made with what was sent.", "How much accuracy may be lost, and who decides?",
    "Seven large boats went past the old harbour.", "Please leave a message after the tone.",
    "Rain is expected in the north on Thursday.", "We measured it twice, and wrote both numbers down.",
)  # fmt: skip
_VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")


class RealModel(NamedTuple):
    """Arrays by name, first axis = samples; `validation` has its labels or targets where they are known."""

    what: str
    model: onnx.ModelProto
    spec: Spec
    calibration: Arrays
    validation: Arrays


def image_classifier(each: int = 20, calibration: int = 44) -> RealModel:
    """EfficientNet-Lite0, judged by what a person sees on `each` crops of every labelled photograph.

    It is calibrated on crops of other photographs, the same number of each.
    """
    others = -(-calibration // len(UNLABELLED))
    rows = np.concatenate([crops(photograph(name), others, SIDE) for name in UNLABELLED])
    judging = [crops_around(photograph(name), subject, each, SIDE) for name, subject in LABELLED.items()]
    labels = np.repeat([subject.label for subject in LABELLED.values()], each)
    return RealModel(
        "EfficientNet-Lite0 on photographs",
        efficientnet_lite0(),
        Spec(metric="top1", accuracy_budget=0.01),
        {"image": _pixels(rows)},
        {"image": _pixels(np.concatenate(judging)), "labels": labels},
    )


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))


def text_direction(calibration: int = 128, validation: int = 512) -> RealModel:
    """PP-OCR's classifier of upright and upside-down lines, on drawn words."""
    lines, labels = lines_of_text(calibration + validation)
    rows = np.ascontiguousarray(((lines[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2))
    return RealModel(
        "text direction (PP-OCR) on lines of text",
        onnx.load(from_wheel(_RAPIDOCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")),
        Spec(metric="top1", accuracy_budget=0.01, shapes={"x": (3, 48, 192)}),
        {"x": rows[:calibration]},
        {"x": rows[calibration:], "labels": labels[calibration:]},
    )


def voice_activity(seed: int = 0) -> RealModel:
    """Silero's detector of speech, on sentences and pauses in faint noise, window by window, each with the state that
    the windows before it left in FP32. The decision counts: speech is what has more than one half.
    """
    model = onnx.load(from_wheel(_SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx"))
    half = len(_SENTENCES) // 2
    calibration, _ = _windows(model, _SENTENCES[:half], seed)
    validation, spoken = _windows(model, _SENTENCES[half:], seed + 1)
    spec = Spec(metric="top1", output="output", accuracy_budget=0.01)
    return RealModel("voice activity (Silero) on speech", model, spec, calibration, {**validation, "labels": spoken})


def _windows(model: onnx.ModelProto, sentences: Sequence[str], seed: int) -> tuple[Arrays, np.ndarray]:
    """Inputs of every window, and 1 where something is said in it, else 0: int64 [windows]."""
    clean, noise = _track(sentences, seed)
    reference = Reference(model)
    sound = np.concatenate([np.zeros(_CONTEXT, np.float32), clean + noise])
    state = np.zeros((2, 1, 128), np.float32)
    rows, states, spoken = [], [], []
    for begin in range(0, len(clean) - _WINDOW + 1, _WINDOW):
        row = sound[begin : begin + _CONTEXT + _WINDOW][None]
        rows.append(row)
        states.append(state)
        spoken.append(int(np.sqrt(np.mean(clean[begin : begin + _WINDOW] ** 2)) > _LOUD))
        state = reference({"input": row, "state": state})["stateN"]
    inputs = {"input": np.stack(rows), "state": np.stack(states)}
    return inputs, np.array(spoken, np.int64)


def _track(sentences: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences between pauses of half a second to two, and the noise beneath, both float32 [samples]."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, sentence in enumerate(sentences):
        parts.append(np.zeros(int(SAMPLE_HZ * rng.uniform(0.5, 2)), np.float32))
        parts.append(speech(sentence, _VOICES[i % len(_VOICES)], int(rng.integers(130, 190))))
    clean = np.concatenate([*parts, np.zeros(SAMPLE_HZ, np.float32)])
    return clean, (0.002 * rng.standard_normal(len(clean))).astype(np.float32)


REAL_MODELS: tuple[Callable[[], RealModel], ...] = (image_classifier, text_direction, voice_activity)
