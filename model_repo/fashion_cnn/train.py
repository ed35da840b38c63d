"""Train the sample image CNN on Fashion-MNIST and write 1/model.onnx and heldout.npz beside this file.

Run as `python model_repo/fashion_cnn/train.py`; it needs the Debian package dataset-fashion-mnist and
`pip install bitserve[samples]`. Seeded: the same versions on the same machine give the same model.
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.datasets import fashion_mnist  # noqa: E402

EPOCHS = 8
BATCH_ROWS = 128
PEAK_LEARNING_RATE = 0.01
MIRRORED_SHARE = 0.5
HELDOUT_ROWS = 256
DOC = "Fashion-MNIST classifier: image float32 [N, 1, 28, 28] in 0..1 to logits float32 [N, 10]."


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution and its batch norm; the norm makes a bias useless, and the export folds it away."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions added to their own input: float32 [N, C, H, W] to the same shape."""

    def __init__(self, channels: int) -> None:
        """Build the block for `channels` feature maps."""
        super().__init__()
        self.first = conv(channels, channels)
        self.second = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of `x` to `x`."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def network() -> nn.Sequential:
    """Return the untrained CNN: float32 [N, 1, 28, 28] in 0..1 to logits float32 [N, 10]."""
    layers: dict[str, nn.Module] = {  # the names become the node names of the ONNX graph
        "stem": conv(1, 32),
        "stem_relu": nn.ReLU(),
        "stem_pool": nn.MaxPool2d(2),
        "block14": Residual(32),  # at 14 x 14
        "down": conv(32, 64, stride=2),
        "down_relu": nn.ReLU(),
        "block7": Residual(64),  # at 7 x 7
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "dropout": nn.Dropout(0.2),
        "head": nn.Linear(64, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def train(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Fit `net` to images float32 [n, 1, 28, 28] and labels int64 [n], mirroring MIRRORED_SHARE of the images."""
    steps = EPOCHS * -(-len(images) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
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
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{EPOCHS}: training loss {total / len(images):.4f}", flush=True)


def export(net: nn.Module, path: Path) -> None:
    """Write `net` to `path` as one ONNX file whose batch axis N is free."""
    # The tracing exporter, on purpose: it names nodes after the modules and stores no stack traces (machine paths).
    torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 1, 28, 28),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )
    model = onnx.load(path)
    model.graph.name = "fashion_cnn"
    model.doc_string = model.graph.doc_string = DOC
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of images uint8 [n, 28, 28] that ONNX Runtime classifies right with the file at `path`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    hits = 0
    for start in range(0, len(images), 500):
        batch = images[start : start + 500, None].astype(np.float32) / 255
        (logits,) = session.run(["logits"], {"image": batch})
        hits += int((logits.argmax(1) == labels[start : start + 500]).sum())
    return hits / len(images)


def main() -> None:
    """Train, export, measure, and keep a few test images for calibration and smoke tests."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = fashion_mnist("train")
    net = network()
    train(net, torch.from_numpy(images[:, None].astype(np.float32) / 255), torch.from_numpy(labels))
    path = HERE / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    export(net, path)
    images, labels = fashion_mnist("test")
    np.savez_compressed(HERE / "heldout.npz", image=images[:HELDOUT_ROWS, None], labels=labels[:HELDOUT_ROWS])
    print(f"test accuracy {accuracy(path, images, labels):.2%} on {len(images)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
