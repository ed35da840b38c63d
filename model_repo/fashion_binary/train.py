"""Train the sample classifier with binary layers on Fashion-MNIST and write 1/model.onnx beside this file.

Run as `python model_repo/fashion_binary/train.py`; it needs the Debian package dataset-fashion-mnist and
`pip install bitserve[samples]`. Seeded: the same versions on the same machine give the same model. Its twin in floats,
`fashion_float`, is made by the same functions.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from engines.passes.binary_layers import with_binary_layers  # noqa: E402
from engines.plugins.bodies import with_bodies  # noqa: E402
from tests.datasets import fashion_mnist  # noqa: E402

EPOCHS = 10
BATCH_ROWS = 128
PEAK_LEARNING_RATE = 0.005
MIRRORED_SHARE = 0.5
STEM_CHANNELS = 64
LATENT_DEVIATION = 0.1
"""Of what has the weights' signs, at first: those near 0 change theirs in a few steps, those near 1 in none."""
LAYERS = ((64, False), (64, True), (96, False), (96, False), (128, False))
"""Filters of each layer after the stem, and whether a max pool halves its picture."""
HEAD_PLACES = 4 * 4
DOC = "Fashion-MNIST classifier, {kind}: image float32 [N, 1, 28, 28] in 0..1 to logits float32 [N, 10]."


class _SignWithPassedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Sign(nn.Module):
    """+1 where x >= 0, else -1; the gradient passes as if it were Clip(x, -1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return _SignWithPassedGradient.apply(x) if self.training else torch.where(x >= 0, 1.0, -1.0)


def binary_layer(inputs: int, outputs: int) -> dict[str, nn.Module]:
    """Return a 3x3 convolution of signs with signs, and its batch norm.

    The border counts as +1: as one more sign, and not as a third value.
    """
    conv = nn.Conv2d(inputs, outputs, 3, bias=False)
    nn.init.normal_(conv.weight, std=LATENT_DEVIATION)
    parametrize.register_parametrization(conv, "weight", Sign())
    return {"sign": Sign(), "border": nn.ConstantPad2d(1, 1.0), "conv": conv, "norm": nn.BatchNorm2d(outputs)}


def float_layer(inputs: int, outputs: int) -> dict[str, nn.Module]:
    """Return the same in floats: ReLU for the sign, and a border of 0."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return {"relu": nn.ReLU(), "conv": conv, "norm": nn.BatchNorm2d(outputs)}


def network(*, binary: bool) -> nn.Sequential:
    """Return the untrained network: float32 [N, 1, 28, 28] in 0..1 to logits float32 [N, 10]."""
    channels = STEM_CHANNELS
    layers: dict[str, nn.Module] = {  # the names become those of the ONNX graph's nodes
        "stem": nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False),
        "stem_norm": nn.BatchNorm2d(channels),
    }
    for number, (filters, is_pooled) in enumerate(LAYERS, 1):
        parts = (binary_layer if binary else float_layer)(channels, filters)
        if is_pooled:
            parts["pool"] = nn.MaxPool2d(2)
        layers[f"layer{number}"] = nn.Sequential(OrderedDict(parts))
        channels = filters
    layers |= {"relu": nn.ReLU(), "pool": nn.MaxPool2d(3, stride=2, padding=1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers | {"head": nn.Linear(channels * HEAD_PLACES, 10)}))


def binary_convolutions(net: nn.Module) -> list[nn.Module]:
    """Return those whose weights are the signs of what is trained."""
    return [module for module in net.modules() if parametrize.is_parametrized(module, "weight")]


def train(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Fit `net` to images float32 [n, 1, 28, 28] and labels int64 [n], mirroring MIRRORED_SHARE of the images."""
    steps = EPOCHS * -(-len(images) // BATCH_ROWS)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    latent = [conv.parametrizations["weight"].original for conv in binary_convolutions(net)]
    net.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.split(torch.randperm(len(images)), BATCH_ROWS):
            mirrored = torch.rand(len(rows), 1, 1, 1) < MIRRORED_SHARE
            batch = torch.where(mirrored, images[rows].flip(3), images[rows])
            loss = loss_of(net(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight in latent:  # beyond 1 the sign has no gradient, so it would never come back
                    weight.clamp_(-1, 1)
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{EPOCHS}: training loss {total / len(images):.4f}", flush=True)


def export(net: nn.Module, path: Path) -> None:
    """Write `net` to `path` as one ONNX file whose batch axis N is free; binary layers as packed bits.

    What those compute is said by functions in the file itself, so ONNX Runtime runs it too.
    """
    binary = binary_convolutions(net)
    for conv in binary:
        parametrize.remove_parametrizations(conv, "weight")  # the signs stay
    program = torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        opset_version=21,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
    )
    model, names = with_binary_layers(readable(program.model_proto))
    if len(names) != len(binary):
        raise SystemExit(f"{len(names)} of {len(binary)} binary layers are found in what was exported")
    model = with_bodies(model) if names else model
    model.graph.name = path.parents[1].name
    model.doc_string = model.graph.doc_string = DOC.format(kind="binary layers" if names else "floats")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def readable(exported: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with layers named after their modules, and without notes of the exporter (machine paths)."""
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del noted.metadata_props[:]
        noted.doc_string = ""
    del graph.value_info[:]
    for node in graph.node:
        weights = [name for name in node.input if name.endswith(".weight")]
        node.name = weights[0].removesuffix(".weight") if weights else node.name.removeprefix("node_")
    return model


def accuracy(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of images uint8 [n, 28, 28] that ONNX Runtime classifies right with the file at `path`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    hits = 0
    for start in range(0, len(images), 500):
        batch = images[start : start + 500, None].astype(np.float32) / 255
        (logits,) = session.run(["logits"], {"image": batch})
        hits += int((logits.argmax(1) == labels[start : start + 500]).sum())
    return hits / len(images)


def make(folder: Path, *, binary: bool) -> None:
    """Train, export and measure one of the twins."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = fashion_mnist("train")
    net = network(binary=binary)
    train(net, torch.from_numpy(images[:, None].astype(np.float32) / 255), torch.from_numpy(labels))
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    export(net, path)
    images, labels = fashion_mnist("test")
    print(f"test accuracy {accuracy(path, images, labels):.2%} on {len(images)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    make(HERE, binary=True)
