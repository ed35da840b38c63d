"""Networks of a known shape with seeded random weights: for speed and memory, never for accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.passes.random_weights import with_random_weights

__all__ = ["binary_resnet18", "resnet18", "resnet50"]

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:]))
        return self.store(name, self._rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in)))

    def signs(self, name: str, *shape: int) -> str:
        return self.store(name, self._rng.choice(np.array([-1, 1], np.float32), shape))

    def zeros(self, name: str, count: int) -> str:
        return self.store(name, np.zeros(count, np.float32))

    def store(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, name: str, channels_in: int, channels_out: int, kernel: int, stride: int) -> str:
        weight = self.weight(f"{name}.weight", channels_out, channels_in, kernel, kernel)
        bias = self.zeros(f"{name}.bias", channels_out)
        return self.add("Conv", [x, weight, bias], name, pads=[kernel // 2] * 4, strides=[stride, stride])

    def block(self, x: str, name: str, channels_in: int, channels_out: int, stride: int) -> str:
        """Two 3x3 convolutions and a skip (He et al. 2016, figure 5 left), batch norms folded away."""
        y = self.add("Relu", [self.conv(x, f"{name}.conv1", channels_in, channels_out, 3, stride)], f"{name}.relu1")
        y = self.conv(y, f"{name}.conv2", channels_out, channels_out, 3, 1)
        if stride != 1 or channels_in != channels_out:
            x = self.conv(x, f"{name}.downsample", channels_in, channels_out, 1, stride)
        return self.add("Relu", [self.add("Add", [y, x], f"{name}.add")], f"{name}.relu2")

    def plain_conv(self, x: str, weight: str, name: str, kernel: int, stride: int) -> str:
        return self.add("Conv", [x, weight], name, pads=[kernel // 2] * 4, strides=[stride, stride])

    def norm(self, x: str, name: str, channels: int, variance: float) -> str:
        """A batch norm as training leaves one: scales of both signs, no statistic that is 0 or 1 everywhere."""
        draw = self._rng.uniform
        statistics = {
            "scale": draw(0.5, 1.5, channels) * self._rng.choice([-1, 1], channels), "bias": draw(-0.5, 0.5, channels),
            "mean": draw(-0.5, 0.5, channels) * np.sqrt(variance), "variance": draw(0.5, 1.5, channels) * variance,
        }  # fmt: skip
        stored = [self.store(f"{name}.{kind}", values) for kind, values in statistics.items()]
        return self.add("BatchNormalization", [x, *stored], name)

    def layer(self, x: str, name: str, channels_in: int, channels_out: int, stride: int, *, binary: bool) -> str:
        """One 3x3 convolution, its batch norm and a skip around both."""
        shape = (channels_out, channels_in, 3, 3)
        if binary:
            is_plus = self.add("GreaterOrEqual", [x, "zero"], f"{name}.compare")
            signs = self.add("Where", [is_plus, "plus", "minus"], f"{name}.sign")
            y = self.plain_conv(signs, self.signs(f"{name}.weight", *shape), f"{name}.conv", 3, stride)
        else:
            y = self.plain_conv(x, self.weight(f"{name}.weight", *shape), f"{name}.conv", 3, stride)
        y = self.norm(y, f"{name}.norm", channels_out, 9 * channels_in if binary else 2)
        if stride != 1 or channels_in != channels_out:
            weight = self.weight(f"{name}.downsample.weight", channels_out, channels_in, 1, 1)
            x = self.norm(
                self.plain_conv(x, weight, f"{name}.downsample", 1, stride), f"{name}.downsample.norm", channels_out, 2
            )
        return self.add("Add", [y, x], f"{name}.add")

    def model(self, name: str, size: int) -> onnx.ModelProto:
        """The graph so far: image float32 [N, 3, size, size] -> logits [N, 1000]."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, name, [image], [logits], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet18(size: int = 224) -> onnx.ModelProto:
    """ResNet-18: image float32 [N, 3, size, size] -> logits [N, 1000]; 46.8 MB.

    Random weights (seed 0), N(0, 2 / fan_in), and no biases (He et al. 2015, "Delving deep into rectifiers").
    """
    b = _Builder()
    x = b.add("Relu", [b.conv("image", "stem", 3, 64, 7, 2)], "stem.relu")
    x = b.add("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels_in = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = b.block(x, f"layer{stage + 1}.{block}", channels_in, channels, 2 if stage and not block else 1)
            channels_in = channels
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x], "pool")], "flat")
    b.add("Gemm", [x, b.weight("fc.weight", 512, 1000), b.zeros("fc.bias", 1000)], "logits")
    return b.model("resnet18", size)


def binary_resnet18(size: int = 224, *, binary: bool = True) -> onnx.ModelProto:
    """ResNet-18 whose 16 convolutions of 3x3 have weights and inputs of -1 and +1: image float32 [N, 3, size, size] ->
    logits [N, 1000]. Random weights (seed 0): its answers mean nothing.

    The stem, the head and the 1x1 convolutions of skips are in floats, and every 3x3 convolution has a skip of its own
    (Liu et al. 2018, "Bi-Real Net"). In ordinary operators, as an exporter writes it. `binary=False` is the twin in
    floats: the same without signs, which is the least that it can compute.
    """
    b = _Builder()
    for name, value in (("zero", 0), ("plus", 1), ("minus", -1)) if binary else ():
        b.store(name, np.array(value))
    x = b.plain_conv("image", b.weight("stem.weight", 64, 3, 7, 7), "stem", 7, 2)
    x = b.add("Relu", [b.norm(x, "stem.norm", 64, 2)], "stem.relu")
    x = b.add("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels_in = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for layer in range(4):
            stride = 2 if stage and not layer else 1
            x = b.layer(x, f"layer{stage + 1}.{layer}", channels_in, channels, stride, binary=binary)
            channels_in = channels
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x], "pool")], "flat")
    b.add("Gemm", [x, b.weight("fc.weight", 512, 1000), b.zeros("fc.bias", 1000)], "logits")
    return b.model(f"{'binary' if binary else 'float'}_resnet18_of_random_weights", size)


def resnet50() -> onnx.ModelProto:
    """ResNet-50, as the `onnx` package has it: gpu_0/data_0 float32 [1, 3, 224, 224] -> logits [1, 1000]; 102 MB.

    Random weights (seed 0) as above, and batch norms as they are before training: they change nothing.
    """
    model = with_random_weights(onnx.load(_LIGHT / "light_resnet50.onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for name, value in zip(node.input[1:], (1, 0, 0, 1), strict=True):  # scale, bias, mean, variance
                stored[name].CopyFrom(_filled(stored[name], value))
        if node.op_type == "Gemm":
            stored[node.input[2]].CopyFrom(_filled(stored[node.input[2]], 0))
    softmax = model.graph.node.pop()
    assert softmax.op_type == "Softmax"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(softmax.input[0], TensorProto.FLOAT, [1, 1000]))
    onnx.checker.check_model(model)
    return model


def _filled(tensor: TensorProto, value: float) -> TensorProto:
    return numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name)
