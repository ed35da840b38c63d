"""Networks as people send them: recurrent ones of several layers, a transformer encoder, CNNs of the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.frontend.onnx import tensor_specs
from engines.passes.calm_softmax import saturating_inputs, with_outputs, with_scaled_values
from engines.passes.random_weights import with_random_weights
from engines.reference import Reference
from engines.samples import Sampler
from tests.support.onnx_models import FLOAT, build

__all__ = ["CNNS", "encoder", "light", "recurrent"]

CNNS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
)  # fmt: skip
_WIDE, _NARROWED = 4096, 256
_LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
node = helper.make_node


def light(name: str) -> onnx.ModelProto:
    """With seeded random weights: as shipped they are constant, and all inputs are answered alike.

    The wide layers of AlexNet and VGG get 256 outputs instead of 4096, or the tests would move gigabytes. What goes
    into the softmax is scaled so that its answers show it.
    """
    model = onnx.load(_LIGHT / f"light_{name}.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:  # the shapes of the weights
            sizes = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.where(sizes == _WIDE, _NARROWED, sizes), tensor.name))
    for value in model.graph.input:  # its initializers are listed there too
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = _NARROWED if dim.dim_value == _WIDE else dim.dim_value
    return calm(with_random_weights(model))


def calm(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose softmax reads values of 4 at most, for one sample: of hundreds it would be 1 at one place always."""
    names = saturating_inputs(model)
    if not names:
        return model
    inputs, _ = tensor_specs(model)
    seen = Reference(with_outputs(model, names))(Sampler(inputs, {}, 1, 1).draw(0))
    return with_scaled_values(model, {name: np.float32(4 / np.abs(seen[name]).max()) for name in names})


def recurrent(
    op_type: str, direction: str = "bidirectional", layers: int = 2, opset: int = 11, hidden: int = 5, *,
    with_lengths: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """x [T, N, 3] of variable length through `layers` layers, one direction after the other in the last axis."""
    rng = np.random.default_rng(0)
    ways, gates, last, width = 2 if direction == "bidirectional" else 1, _GATES[op_type] * hidden, "x", 3
    nodes, stored = [], {"join": np.array([0, 0, -1], np.int64)}
    for i in range(layers):
        stored[f"W{i}"] = rng.standard_normal((ways, gates, width), dtype=np.float32) * np.float32(0.5)
        stored[f"R{i}"] = rng.standard_normal((ways, gates, hidden), dtype=np.float32) * np.float32(0.5)
        stored[f"B{i}"] = rng.standard_normal((ways, 2 * gates), dtype=np.float32) * np.float32(0.1)
        reads = [last, f"W{i}", f"R{i}", f"B{i}", *(["lengths"] if with_lengths else [])]
        reset = {"linear_before_reset": 1} if op_type == "GRU" else {}
        last, width = "y" if i == layers - 1 else f"s{i}", ways * hidden
        nodes += [  # Y is [T, ways, N, hidden]
            node(op_type, reads, [f"y{i}"], hidden_size=hidden, direction=direction, **reset),
            node("Transpose", [f"y{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"t{i}", "join"], [last]),
        ]
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, ["T", "N", 3])}
    if with_lengths:
        inputs["lengths"] = (TensorProto.INT32, ["N"])
    return build(nodes, inputs, {"y": (FLOAT, ["T", "N", width])}, stored, opset)


def encoder(width: int = 16, heads: int = 4, layers: int = 2, opset: int = 13) -> onnx.ModelProto:
    """Token numbers [N, T] -> embedding -> attention and feed-forward layers, normalized after each -> [N, T, width].

    Layer normalization is spelled out, as exports before opset 17 have it.
    """
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "E": rng.standard_normal((50, width), dtype=np.float32),
        "split": np.array([0, 0, heads, width // heads], np.int64),
        "join": np.array([0, 0, width], np.int64),
        "root": np.float32(np.sqrt(width / heads)),
        "two": np.float32(2),
        "epsilon": np.float32(1e-5),
    }
    if opset >= 18:
        stored["last"] = np.array([-1], np.int64)
    nodes = [node("Gather", ["E", "x"], ["h0"])]

    def product(read: str, name: str, rows: int, columns: int) -> str:
        stored[f"{name}_W"] = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))
        stored[f"{name}_b"] = rng.standard_normal(columns, dtype=np.float32) * np.float32(0.1)
        nodes.append(node("MatMul", [read, f"{name}_W"], [f"{name}_p"]))
        nodes.append(node("Add", [f"{name}_p", f"{name}_b"], [name]))
        return name

    def mean(read: str, name: str) -> str:
        how = {} if opset >= 18 else {"axes": [-1]}
        nodes.append(node("ReduceMean", [read, "last"] if opset >= 18 else [read], [name], keepdims=1, **how))
        return name

    def normalize(left: str, right: str, name: str) -> None:
        nodes.append(node("Add", [left, right], [f"{name}_s"]))
        nodes.append(node("Sub", [f"{name}_s", mean(f"{name}_s", f"{name}_m")], [f"{name}_c"]))
        nodes.append(node("Pow", [f"{name}_c", "two"], [f"{name}_q"]))
        nodes.append(node("Add", [mean(f"{name}_q", f"{name}_v"), "epsilon"], [f"{name}_e"]))
        nodes.append(node("Sqrt", [f"{name}_e"], [f"{name}_d"]))
        nodes.append(node("Div", [f"{name}_c", f"{name}_d"], [name]))

    for i in range(layers):
        for part in "qkv":
            product(f"h{i}", f"{part}{i}", width, width)
            nodes.append(node("Reshape", [f"{part}{i}", "split"], [f"{part}s{i}"]))
            perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            nodes.append(node("Transpose", [f"{part}s{i}"], [f"{part}t{i}"], perm=perm))
        nodes += [
            node("MatMul", [f"qt{i}", f"kt{i}"], [f"d{i}"]),
            node("Div", [f"d{i}", "root"], [f"w{i}"]),
            node("Softmax", [f"w{i}"], [f"a{i}"], axis=-1),
            node("MatMul", [f"a{i}", f"vt{i}"], [f"o{i}"]),
            node("Transpose", [f"o{i}"], [f"ot{i}"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"ot{i}", "join"], [f"oj{i}"]),
        ]
        normalize(f"h{i}", product(f"oj{i}", f"p{i}", width, width), f"n{i}")
        nodes.append(node("Relu", [product(f"n{i}", f"f{i}", width, 4 * width)], [f"r{i}"]))
        normalize(f"n{i}", product(f"r{i}", f"g{i}", 4 * width, width), "y" if i == layers - 1 else f"h{i + 1}")
    inputs = {"x": (TensorProto.INT64, ["N", "T"])}
    return build(nodes, inputs, {"y": (FLOAT, ["N", "T", width])}, stored, opset)
