"""The sample models through HTTP, on the whole test splits of their data sets: within 0.5 points of their cards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from tests import datasets
from tests.support.servers import Server, running

ROOT = Path(__file__).parent.parent.parent
POINTS = 0.5
ROWS = 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("samples") / "model_repo"
    shutil.copytree(ROOT / "model_repo", repository, ignore=shutil.ignore_patterns(".cache"))
    with running(repository) as started:
        started.wait_ready("fashion_cnn", "japanese_vowels", "letter_mlp")
        yield started


def card_percent(model: str) -> float:
    """The accuracy that the model card states."""
    found = re.search(r"\*\*(\d+\.\d+) ?%\*\*", (ROOT / "model_repo" / model / "CARD.md").read_text())
    assert found, f"the card of {model} states no accuracy"
    return float(found[1])


def predictions(server: Server, model: str, name: str, rows: list[np.ndarray]) -> np.ndarray:
    """The class of every request's rows, asked as a client would: 16 requests on the way at once."""
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=16)
    waiting = []
    for array in rows:
        tensor = triton.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        waiting.append(client.async_infer(model, [tensor]))
    answers = [answer.get_result().as_numpy("logits") for answer in waiting]
    client.close()
    return np.concatenate(answers).argmax(axis=1)


def chunks(array: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(array[start : start + ROWS]) for start in range(0, len(array), ROWS)]


def heldout(model: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "model_repo" / model / "heldout.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_accuracy(model: str, predicted: np.ndarray, labels: np.ndarray, least_percent: float) -> None:
    percent = 100 * float((predicted == labels).mean())
    assert percent >= least_percent
    assert abs(percent - card_percent(model)) <= POINTS


def data_or_skip(reader: Callable[[str], tuple[Any, np.ndarray]]) -> tuple[Any, np.ndarray]:
    """The test split; a machine that cannot get it skips with what to install."""
    try:
        return reader("test")
    except datasets.DatasetMissing as missing:
        pytest.skip(str(missing))


def test_image_classifier(server: Server) -> None:
    images, labels = data_or_skip(datasets.fashion_mnist)
    pixels = (images[:, np.newaxis] / np.float32(255)).astype(np.float32)
    assert_accuracy("fashion_cnn", predictions(server, "fashion_cnn", "image", chunks(pixels)), labels, 90)


def test_recurrent_classifier_at_true_lengths(server: Server) -> None:
    utterances, labels = data_or_skip(datasets.japanese_vowels)
    rows = [utterance[np.newaxis] for utterance in utterances]
    assert_accuracy("japanese_vowels", predictions(server, "japanese_vowels", "frames", rows), labels, 95)


def test_letter_classifier(server: Server) -> None:
    features, labels = data_or_skip(datasets.letter_recognition)
    assert_accuracy("letter_mlp", predictions(server, "letter_mlp", "features", chunks(features)), labels, 93)


def test_held_out_rows_travel_with_the_models(server: Server) -> None:
    fashion = heldout("fashion_cnn")
    pixels = (fashion["image"] / np.float32(255)).astype(np.float32)
    predicted = predictions(server, "fashion_cnn", "image", chunks(pixels))
    assert 100 * float((predicted == fashion["labels"]).mean()) >= 90
    vowels = heldout("japanese_vowels")
    rows = [vowels["frames"][i : i + 1, :length] for i, length in enumerate(vowels["lengths"])]
    predicted = predictions(server, "japanese_vowels", "frames", [np.ascontiguousarray(row) for row in rows])
    assert 100 * float((predicted == vowels["labels"]).mean()) >= 95


@pytest.mark.parametrize("model", ["fashion_cnn", "japanese_vowels", "letter_mlp"])
def test_a_sample_is_small_and_complete(model: str) -> None:
    folder = ROOT / "model_repo" / model
    assert (folder / "1/model.onnx").stat().st_size < 2_000_000
    for name in ("labels.txt", "CARD.md", "train.py", "config.toml"):
        assert (folder / name).is_file()
