"""Small ONNX models, each with one property that a test needs. Built with onnx.helper; no training, seeded weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["add_sub", "build", "linear", "place", "slow", "softmax_over_batch", "time_major_lstm"]

Shape = Sequence[int | str]
FLOAT = TensorProto.FLOAT


def build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model from nodes and `name: (element type, shape)` tables."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def linear(width: int = 16, outputs: int = 4, scale: float = 1.0, batch: int | str = "N") -> onnx.ModelProto:
    """y [batch, outputs] = x [batch, width] @ W, with W[i, j] = scale * (i + 1) / width if i % outputs == j else 0."""
    weights = np.zeros((width, outputs), np.float32)
    for i in range(width):
        weights[i, i % outputs] = scale * (i + 1) / width
    return build(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="linear")],
        {"x": (FLOAT, [batch, width])},
        {"y": (FLOAT, [batch, outputs])},
        {"W": weights},
    )


def add_sub(width: int = 16) -> onnx.ModelProto:
    """Triton's example model: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, all INT32 [N, width]."""
    tensor = (TensorProto.INT32, ["N", width])
    return build(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"], name="add"),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"], name="sub"),
        ],
        {"INPUT0": tensor, "INPUT1": tensor},
        {"OUTPUT0": tensor, "OUTPUT1": tensor},
    )


def time_major_lstm(width: int = 3, hidden: int = 8, *, batch_first: bool = False) -> onnx.ModelProto:
    """An LSTM over x [T, N, width] (rows of the first dimension touch), or batch-first through transposes."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.standard_normal((1, 4 * hidden, width), dtype=np.float32),
        "R": rng.standard_normal((1, 4 * hidden, hidden), dtype=np.float32) * np.float32(0.2),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("LSTM", ["xt" if batch_first else "x", "W", "R"], ["ys"], hidden_size=hidden, name="lstm"),
        helper.make_node("Squeeze", ["ys", "axes"], ["yt" if batch_first else "y"], name="squeeze"),
    ]
    if batch_first:
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2], name="to_time_major"))
        nodes.append(helper.make_node("Transpose", ["yt"], ["y"], perm=[1, 0, 2], name="to_batch_major"))
    dims = ["N", "T"] if batch_first else ["T", "N"]
    return build(nodes, {"x": (FLOAT, [*dims, width])}, {"y": (FLOAT, [*dims, hidden])}, weights)


def softmax_over_batch(width: int = 8) -> onnx.ModelProto:
    """A softmax down the first dimension: every row's answer depends on every other row."""
    return build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0, name="softmax")],
        {"x": (FLOAT, ["N", width])},
        {"y": (FLOAT, ["N", width])},
    )


def slow(width: int = 1024, layers: int = 24) -> onnx.ModelProto:
    """Square matrix products in a row: tens of milliseconds a batch, small on the wire (x [N, 4])."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"in": rng.standard_normal((4, width), dtype=np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "in"], ["h0"], name="widen")]
    for layer in range(layers):
        weights[f"w{layer}"] = rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"], name=f"layer{layer}"))
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}"], ["y"], axes=[1], keepdims=1, name="mean"))
    return build(nodes, {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 1])}, weights)


def place(repository: Path, name: str, model: onnx.ModelProto | bytes, version: int = 1, config: str = "") -> Path:
    """Put a model into a repository as a user would; returns the model file's path."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    data: Any = model if isinstance(model, bytes) else model.SerializeToString()
    path.write_bytes(data)
    if config:
        (repository / name / "config.toml").write_text(config)
    return path
