"""Models in bits, as files hold them, and what NumPy's definition of their operators makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engines.plugins import reference
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN, VERSION, ConvAttributes, GemmAttributes, PoolAttributes, pack_bits

__all__ = ["File", "in_numpy"]


class File:
    """A model in bits: x FLOAT [rows, channels, height, width], or [rows, channels] where it is `flat` -> y."""

    def __init__(self, channels: int = 40, *, flat: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)
        self.channels, self.shape = channels, ["n", channels] if flat else ["n", channels, "h", "w"]

    def add(self, kind: str, given: str, stored: dict[str, np.ndarray], **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.stored.update({f"{name}.{key}": array for key, array in stored.items()})
        inputs = [given, *(f"{name}.{key}" for key in stored)]
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name=name, domain=DOMAIN, **attributes))
        return f"{name}.out"

    def pack(self, given: str, channels: int | None = None, strict: int = 0) -> str:
        limits = self.rng.integers(-2, 3, channels or self.channels).astype(np.float32)
        return self.add("BinaryPack", given, {"t": limits}, strict=strict)

    def weights(self, *shape: int) -> dict[str, np.ndarray]:
        return {"w": pack_bits(self.rng.random(shape) < 0.5)}

    def floats(self, filters: int, activation: np.ndarray) -> dict[str, np.ndarray]:
        multiplier, bias = self.rng.integers(-3, 4, (2, filters)).astype(np.float32) / 4
        return {"m": multiplier, "b": bias, "a": activation.astype(np.float32)}

    def limits(self, filters: int, most: int = 20) -> dict[str, np.ndarray]:
        flips = self.rng.random(filters) < 0.5
        return {"t": self.rng.integers(-most, most + 1, filters).astype(np.int32), "f": pack_bits(flips)}

    def model(self, output: str) -> ModelProto:
        rank = 2 if any(node.op_type in ("BinaryGemm", "BinaryThreshold") for node in self.nodes) else 4
        graph = helper.make_graph(
            self.nodes, "bits", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
        return with_bodies(helper.make_model(graph, opset_imports=imports, ir_version=10))


_OPERATORS = {
    "BinaryConv2d": (reference.binary_conv2d, ConvAttributes),
    "BinaryThreshold2d": (reference.binary_threshold2d, ConvAttributes),
    "BinaryGemm": (reference.binary_gemm, GemmAttributes),
    "BinaryThreshold": (reference.binary_threshold, GemmAttributes),
    "BinaryMaxPool": (reference.binary_max_pool, PoolAttributes),
}


def in_numpy(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """The output of a model of `bnn` operators alone, by their definition."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | {"x": x}
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        own = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "BinaryPack":
            made = reference.binary_pack(*given, strict=bool(own["strict"]))
        else:
            run, attributes = _OPERATORS[node.op_type]
            made = run(*given, attributes(**{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}))
        values[node.output[0]] = made
    return values[model.graph.output[0].name]
