"""Train the sample tabular MLP on LetterRecognition and write 1/model.onnx beside this file.

Run as `python model_repo/letter_mlp/train.py`; it needs Debian's apt-get (to fetch the data, not to install it) and
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
from tests.datasets import letter_recognition  # noqa: E402

EPOCHS = 60
BATCH_ROWS = 128
PEAK_LEARNING_RATE = 0.01
DOC = "LetterRecognition classifier: features float32 [N, 16], raw 0..15, to logits float32 [N, 26] for A..Z."


class Scale(nn.Module):
    """Map raw features 0..15 to -1..1, inside the graph so that no client has to."""

    def forward(self, features: Tensor) -> Tensor:
        """Scale float32 [N, 16]."""
        return (features - 7.5) / 7.5


def network() -> nn.Sequential:
    """Return the untrained MLP: features float32 [N, 16] in 0..15 to logits float32 [N, 26]."""
    layers: dict[str, nn.Module] = {  # the names become the node names of the ONNX graph
        "scale": Scale(),
        "hidden1": nn.Linear(16, 256),
        "relu1": nn.ReLU(),
        "dropout1": nn.Dropout(0.1),
        "hidden2": nn.Linear(256, 256),
        "relu2": nn.ReLU(),
        "dropout2": nn.Dropout(0.1),
        "head": nn.Linear(256, 26),
    }
    return nn.Sequential(OrderedDict(layers))


def train(net: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Fit `net` to features float32 [n, 16] and labels int64 [n]."""
    steps = EPOCHS * -(-len(features) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    net.train()
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(features)), BATCH_ROWS):
            loss = loss_of(net(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def export(net: nn.Module, path: Path) -> None:
    """Write `net` to `path` as one ONNX file whose batch axis N is free."""
    # The tracing exporter, on purpose: it names nodes after the modules and stores no stack traces (machine paths).
    torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 16),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["features"],
        output_names=["logits"],
        dynamic_axes={"features": {0: "N"}, "logits": {0: "N"}},
    )
    model = onnx.load(path)
    model.graph.name = "letter_mlp"
    model.doc_string = model.graph.doc_string = DOC
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(path: Path, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of rows float32 [n, 16] that ONNX Runtime classifies right with the file at `path`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"features": features})
    return float((logits.argmax(1) == labels).mean())


def main() -> None:
    """Train, export and measure; no row of the data is written beside the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    features, labels = letter_recognition("train")
    net = network()
    train(net, torch.from_numpy(features), torch.from_numpy(labels))
    path = HERE / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    export(net, path)
    features, labels = letter_recognition("test")
    print(f"test accuracy {accuracy(path, features, labels):.2%} on {len(labels)} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
