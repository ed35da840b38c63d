"""Train the sample recurrent model on JapaneseVowels and write 1/model.onnx and heldout.npz beside this file.

Run as `python model_repo/japanese_vowels/train.py`; it needs `pip install bitserve[samples]` (the data is inside
aeon). Seeded: the same versions on the same machine give the same model.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.datasets import japanese_vowels  # noqa: E402

CHANNELS, HIDDEN, SPEAKERS = 12, 64, 9
# Chosen by 5-fold cross-validation on the 270 training utterances (98.9 %), never by the test split.
EPOCHS = 60
BATCH_ROWS = 32
PEAK_LEARNING_RATE = 0.005
NOISE_STD = 0.3  # in units of each channel's standard deviation
MIN_CROP = 0.5  # shortest random crop, as a share of the utterance
HELDOUT_ROWS = 200
DOC = "JapaneseVowels speaker classifier: frames float32 [N, T, 12] to logits float32 [N, 9]; N and T are free."


class Network(nn.Module):
    """Standardize, one bidirectional GRU, mean over time, linear."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Build it around the training set's mean and std, float32 [12] each."""
        super().__init__()
        self.mean, self.std = mean, std
        self.gru = nn.GRU(CHANNELS, HIDDEN, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * HIDDEN, SPEAKERS)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Map zero-padded frames float32 [N, T, 12] and lengths int64 [N] to logits float32 [N, 9]."""
        frames = (frames - self.mean) / self.std
        if self.training:
            frames = frames + NOISE_STD * torch.randn_like(frames)
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)  # zero past each length
        logits: Tensor = self.head(self.dropout(states.sum(1) / lengths[:, None]))
        return logits


def crop(frames: Tensor) -> Tensor:
    """Return a random stretch of one utterance, float32 [T, 12] to [t, 12]; 270 utterances are few."""
    length = int(torch.randint(max(5, int(MIN_CROP * len(frames))), len(frames) + 1, ()))
    start = int(torch.randint(0, len(frames) - length + 1, ()))
    return frames[start : start + length]


def train(utterances: list[Tensor], labels: Tensor) -> Network:
    """Return a network fitted to utterances float32 [T, 12] and labels int64 [n]."""
    every_frame = torch.cat(utterances)
    net = Network(every_frame.mean(0), every_frame.std(0))
    steps = EPOCHS * -(-len(utterances) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(utterances)), BATCH_ROWS):
            crops = [crop(utterances[row]) for row in rows.tolist()]
            lengths = torch.tensor([len(frames) for frames in crops])
            loss = loss_of(net(pad_sequence(crops, batch_first=True), lengths), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: Network, path: Path) -> None:
    """Write `net` as an ONNX file with free batch axis N and time axis T.

    Built by hand: both of PyTorch's exporters surround the GRU with Shape and Expand nodes that make zero initial
    states, which ONNX implies anyway, and with Reshapes that this order of operations avoids.
    """

    def both(kind: str) -> NDArray[np.float32]:
        """Stack a weight or bias of both directions, with gates in ONNX's order: PyTorch has r, z, n, ONNX z, r, h."""
        stacked = torch.stack([getattr(net.gru, f"{kind}_l0{direction}") for direction in ("", "_reverse")])
        reset, update, new = stacked.chunk(3, dim=1)
        return torch.cat([update, reset, new], dim=1).detach().numpy()

    weights = {
        "mean": net.mean.numpy(),
        "std": net.std.numpy(),
        "gru.W": both("weight_ih"),
        "gru.R": both("weight_hh"),
        "gru.B": np.concatenate([both("bias_ih"), both("bias_hh")], axis=1),
        "head.weight": net.head.weight.detach().numpy(),
        "head.bias": net.head.bias.detach().numpy(),
    }
    node = helper.make_node
    nodes = [
        node("Sub", ["frames", "mean"], ["centred"], "centre"),
        node("Div", ["centred", "std"], ["standard"], "standardize"),
        node("Transpose", ["standard"], ["steps"], "time_first", perm=[1, 0, 2]),  # [T, N, 12]
        node(
            *("GRU", ["steps", "gru.W", "gru.R", "gru.B"], ["states"], "gru"),  # [T, 2, N, 64]
            direction="bidirectional",
            hidden_size=HIDDEN,
            linear_before_reset=1,  # PyTorch's form of the GRU
        ),
        node("ReduceMean", ["states"], ["pooled"], "mean_over_time", axes=[0], keepdims=0),  # [2, N, 64]
        node("Transpose", ["pooled"], ["batch_first"], "batch_first", perm=[1, 0, 2]),
        node("Flatten", ["batch_first"], ["utterance"], "join_directions", axis=1),  # [N, 128]
        node("Gemm", ["utterance", "head.weight", "head.bias"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "japanese_vowels",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["N", "T", CHANNELS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", SPEAKERS])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        DOC,
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="bitserve", doc_string=DOC)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def predict(path: Path, utterances: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return ONNX Runtime's logits float32 [n, 9], each utterance alone and at its own length."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"frames": frames[None]})[0] for frames in utterances])


def save_heldout(path: Path, utterances: list[NDArray[np.float32]], labels: NDArray[np.int64]) -> None:
    """Keep a seeded draw of utterances: frames float32 [n, longest, 12] padded with NaN, lengths int64 [n], labels."""
    rows = np.sort(np.random.default_rng(0).permutation(len(utterances))[:HELDOUT_ROWS])
    lengths = np.array([len(utterances[row]) for row in rows])
    frames = np.full((len(rows), lengths.max(), CHANNELS), np.nan, np.float32)
    for padded, row in zip(frames, rows, strict=True):
        padded[: len(utterances[row])] = utterances[row]
    np.savez_compressed(path, frames=frames, lengths=lengths, labels=labels[rows])


def main() -> None:
    """Train, export, measure on the file, and keep test utterances for calibration and smoke tests."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    utterances, labels = japanese_vowels("train")
    net = train([torch.from_numpy(frames) for frames in utterances], torch.from_numpy(labels))
    path = HERE / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    export(net, path)
    utterances, labels = japanese_vowels("test")
    logits = predict(path, utterances)
    with torch.no_grad():  # the graph was built by hand, so check it against the network it copies
        lengths = torch.tensor([len(frames) for frames in utterances])
        padded = pad_sequence([torch.from_numpy(frames) for frames in utterances], batch_first=True)
        np.testing.assert_allclose(logits, net(padded, lengths).numpy(), atol=1e-4)
    save_heldout(HERE / "heldout.npz", utterances, labels)
    accuracy = (logits.argmax(1) == labels).mean()
    print(f"test accuracy {accuracy:.2%} on {len(labels)} utterances, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
