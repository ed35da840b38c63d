"""The sample models in canonical form, with rows to calibrate on and others to judge by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from engines.canonical import canonical
from engines.reference import Arrays, Reference
from tests import datasets

__all__ = ["Task", "accuracy_percent", "multiply_adds", "task"]

ROOT = Path(__file__).parent.parent.parent / "model_repo"


class Task(NamedTuple):
    """`calibration` and `rows` have no row in common; one request each, of one row."""

    model: onnx.ModelProto
    calibration: list[Arrays]
    rows: list[Arrays]
    labels: np.ndarray


def task(name: str) -> Task:
    """The first half of the held-out rows calibrates, the other judges; of the letters, which are not kept beside the
    model, 256 of the training rows and all test rows.
    """
    model, _ = canonical(onnx.load(ROOT / name / "1/model.onnx"))
    if name == "letter_mlp":
        try:
            train, _ = datasets.letter_recognition("train")
            features, labels = datasets.letter_recognition("test")
        except datasets.DatasetMissing as missing:
            pytest.skip(str(missing))
        return Task(model, [{"features": row[None]} for row in train[:256]], [{"features": features}], labels)
    with np.load(ROOT / name / "heldout.npz", allow_pickle=False) as file:
        held = dict(file)
    if name == "fashion_cnn":
        rows = [{"image": image[None] / np.float32(255)} for image in held["image"]]
    else:
        pairs = zip(held["frames"], held["lengths"], strict=True)
        rows = [{"frames": np.ascontiguousarray(frames[None, :length])} for frames, length in pairs]
    half = len(rows) // 2
    return Task(model, rows[:half], rows[half:], held["labels"][half:])


def accuracy_percent(model: onnx.ModelProto, rows: list[Arrays], labels: np.ndarray) -> float:
    run = Reference(model)
    answers = np.concatenate([run(row)["logits"] for row in rows])
    return 100 * float((answers.argmax(axis=1) == labels).mean())


def multiply_adds(model: onnx.ModelProto, batch: int = 1) -> int:
    """Of all Conv, Gemm and MatMul nodes, from the shapes that inference finds at this batch size."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    graph = onnx.shape_inference.infer_shapes(fixed).graph
    dims = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    stored = {tensor.name: tensor.dims for tensor in graph.initializer}
    count = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        outputs, weights = int(np.prod(dims[node.output[0]])), stored[node.input[1]]
        channels = dims[node.output[0]][1]
        assert outputs > 0
        count += outputs * int(np.prod(weights)) // channels
    return count
