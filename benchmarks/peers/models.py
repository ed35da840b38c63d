"""What peers serve: models so small that the server is what is measured, and ResNet-18."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.networks import resnet18
from tests.support.onnx_models import build

__all__ = ["MAX_BATCH", "Served", "largest", "resnet", "tiny"]

MAX_BATCH = 32
"""Rows of a batch, for all servers."""


@dataclass(frozen=True)
class Served:
    """A model of one input and one output, both FP32 with rows along the first axis.

    `row`: shape of the input without rows. `classes`: numbers of a row's answer. `tolerance`: how far an answer may
    be from the reference's, as a share of the largest number of that answer.
    """

    name: str
    model: onnx.ModelProto
    input: str
    row: tuple[int, ...]
    output: str
    classes: int
    tolerance: float


def tiny(name: str = "tiny", seed: int = 0) -> Served:
    """X [N, 64] -> 64 -> 10 with a ReLU between: 4,736 multiply-adds a row."""
    rng = np.random.default_rng(seed)
    hidden, head = (rng.standard_normal(shape, dtype=np.float32) / 8 for shape in ((64, 64), (64, 10)))
    nodes = [
        helper.make_node("MatMul", ["x", "hidden"], ["h"], name="hidden"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "head"], ["y"], name="head"),
    ]
    model = build(
        nodes,
        {"x": (TensorProto.FLOAT, ["N", 64])},
        {"y": (TensorProto.FLOAT, ["N", 10])},
        {"hidden": hidden, "head": head},
    )
    # two sums of 64 products, each off by at most 64 roundings of 2**-24 in any order, with room for what cancels out
    return Served(name, model, "x", (64,), "y", 10, 1e-4)


def largest(width: int) -> Served:
    """X [N, width] -> the largest number of each row, [N, 1]: next to no work, the body is what costs. Exact."""
    node = helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=1, name="largest")
    model = build([node], {"x": (TensorProto.FLOAT, ["N", width])}, {"y": (TensorProto.FLOAT, ["N", 1])})
    return Served(f"largest_{width}", model, "x", (width,), "y", 1, 0.0)


def resnet() -> Served:
    """ResNet-18 at 224: image [N, 3, 224, 224] -> logits [N, 1000]; 602,112 bytes a row."""
    return Served("resnet18", resnet18(), "image", (3, 224, 224), "logits", 1000, 1e-3)
