"""The sample models through HTTP, on the whole test splits of their data sets: within 0.5 points of their cards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
import tritonclient.http as triton
from onnx import numpy_helper

from engines.plugins.extension import extension_path
from engines.plugins.ops import DOMAIN
from engines.reference import Reference
from tests import datasets
from tests.support.servers import Server, running

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ("fashion_binary", "fashion_cnn", "fashion_float", "japanese_vowels", "letter_mlp")
POINTS = 0.5
TWIN_POINTS = 4.0
"""What signs may cost."""
BINARY = {"BinaryConv2d", "BinaryThreshold2d"}
ROWS = 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("samples") / "model_repo"
    shutil.copytree(ROOT / "model_repo", repository, ignore=shutil.ignore_patterns(".cache"))
    with running(repository) as started:
        started.wait_ready(*SAMPLES)
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


def pixels(images: np.ndarray) -> list[np.ndarray]:
    return chunks((images.reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32))


def test_image_classifiers(server: Server) -> None:
    images, labels = data_or_skip(datasets.fashion_mnist)
    right = {}
    for model, least_percent in (("fashion_cnn", 90), ("fashion_float", 90), ("fashion_binary", 87)):
        predicted = predictions(server, model, "image", pixels(images))
        assert_accuracy(model, predicted, labels, least_percent)
        right[model] = 100 * float((predicted == labels).mean())
    assert right["fashion_binary"] >= right["fashion_float"] - TWIN_POINTS


def test_recurrent_classifier_at_true_lengths(server: Server) -> None:
    utterances, labels = data_or_skip(datasets.japanese_vowels)
    rows = [utterance[np.newaxis] for utterance in utterances]
    assert_accuracy("japanese_vowels", predictions(server, "japanese_vowels", "frames", rows), labels, 95)


def test_letter_classifier(server: Server) -> None:
    features, labels = data_or_skip(datasets.letter_recognition)
    assert_accuracy("letter_mlp", predictions(server, "letter_mlp", "features", chunks(features)), labels, 93)


def test_held_out_rows_travel_with_the_models(server: Server) -> None:
    fashion = heldout("fashion_cnn")
    predicted = predictions(server, "fashion_cnn", "image", pixels(fashion["image"]))
    assert 100 * float((predicted == fashion["labels"]).mean()) >= 90
    vowels = heldout("japanese_vowels")
    rows = [vowels["frames"][i : i + 1, :length] for i, length in enumerate(vowels["lengths"])]
    predicted = predictions(server, "japanese_vowels", "frames", [np.ascontiguousarray(row) for row in rows])
    assert 100 * float((predicted == vowels["labels"]).mean()) >= 95


def stored_of(model: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    loaded = onnx.load(ROOT / "model_repo" / model / "1/model.onnx")
    return loaded, {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}


def test_binary_layers_are_a_tenth_of_their_twins_in_the_file() -> None:
    """With all that they read beside their data: thresholds, or multipliers and biases."""
    (binary, bits), (twin, floats) = stored_of("fashion_binary"), stored_of("fashion_float")
    layers = {node.name: node for node in binary.graph.node if node.op_type in BINARY and node.domain == DOMAIN}
    twins = {node.name: node for node in twin.graph.node if node.name in layers}
    assert len(layers) >= 4
    assert {node.op_type for node in layers.values()} == BINARY, "floats come out of some, bits of others"
    assert layers.keys() == twins.keys()
    for name, layer in layers.items():
        weights = floats[twins[name].input[1]]
        assert bits[layer.input[1]].shape[:3] == (len(weights), *weights.shape[2:])
        assert 10 * sum(bits[read].nbytes for read in layer.input[1:]) <= 4 * weights.size


def test_binary_layers_answer_as_onnx_runtime_does_on_the_same_file(server: Server) -> None:
    images = heldout("fashion_cnn")["image"]
    asked = Reference(stored_of("fashion_binary")[0])
    wanted = np.concatenate([asked({"image": rows})["logits"] for rows in pixels(images)]).argmax(axis=1)
    changed = predictions(server, "fashion_binary", "image", pixels(images)) != wanted
    assert not changed.any()


@pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
def test_binary_layers_are_served_on_bits(server: Server) -> None:
    report = httpx.get(f"{server.url}/v2/models/fashion_binary/versions/1/report", timeout=30).json()
    ran = {layer["source"] or layer["name"] for layer in report["layers"] if layer["op_type"] in BINARY}
    model, _ = stored_of("fashion_binary")
    assert ran == {node.name for node in model.graph.node if node.op_type in BINARY}


def test_a_second_start_is_quick(server: Server) -> None:
    with running(server.repository) as second:
        second.wait_ready(*SAMPLES)
        spent = psutil.Process(second.process.pid).cpu_times()  # seconds of work: the machine may be busy with others
        assert spent.user + spent.system < 3
        assert not [event for event in second.log_events() if event["message"].startswith("compiling")]


@pytest.mark.parametrize("model", SAMPLES)
def test_a_sample_is_small_and_complete(model: str) -> None:
    folder = ROOT / "model_repo" / model
    assert (folder / "1/model.onnx").stat().st_size < 2_000_000
    for name in ("labels.txt", "CARD.md", "train.py", "config.toml"):
        assert (folder / name).is_file()
