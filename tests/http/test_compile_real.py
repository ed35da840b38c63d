"""Trained models of others, sent as they are, answer real inputs through HTTP: kinds of files, lines of text, pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.reference import Reference
from tests.packaged import DatasetMissing, from_wheel
from tests.support.real_inputs import lines_of_text
from tests.support.servers import ROOT, Server, running
from tests.support.uploads import ended, send

pytestmark = pytest.mark.asks_the_compiler

MAGIKA, RAPIDOCR = "magika==1.0.3", "rapidocr==3.10.0"
HALF = 1024
"""Bytes that Magika reads of each end of a file; 256 stands for a byte that is not there."""
FILES = {
    "python": "engines/build.py", "makefile": "Makefile", "toml": "pyproject.toml", "markdown": "CHANGELOG.md",
    "html": "engines/report_page.html", "onnx": "model_repo/letter_mlp/1/model.onnx",
    "cpp": "engines/plugins/cpu/src/pack.cpp",
    "cmake": "engines/plugins/cpu/CMakeLists.txt", "json": "benchmarks/results/builds.json",
    "svg": "benchmarks/results/precision.svg",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def packaged(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except DatasetMissing as missing:
        pytest.skip(str(missing))


def sent(server: Server, name: str, file: Path) -> onnx.ModelProto:
    """The model, once it serves."""
    done = ended(server, send(server, name, file.read_bytes(), {"precision": "fp32"}))
    assert done["state"] == "succeeded", done["error"]
    return onnx.load(file)


def asked(server: Server, model: str, name: str, datatype: str, rows: np.ndarray) -> np.ndarray:
    answer = server.infer(model, {name: (datatype, rows)})
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def ends_of(data: bytes) -> list[int]:
    """As Magika's own code cuts a file: without the blanks around it, 1024 bytes of each end."""
    first, last = data[:4096].lstrip()[:HALF], data[-4096:].rstrip()[-HALF:]
    return [*first, *[256] * (HALF - len(first)), *[256] * (HALF - len(last)), *last]


def test_kinds_of_files_are_told_from_their_bytes(server: Server) -> None:
    file = packaged(lambda: from_wheel(MAGIKA, "magika/models/standard_v3_3/model.onnx"))
    labels = json.loads(from_wheel(MAGIKA, "magika/models/standard_v3_3/config.min.json").read_text())
    model = sent(server, "magika", file)
    rows = np.array([ends_of((ROOT / path).read_bytes()) for path in FILES.values()], np.int32)
    scores = asked(server, "magika", "bytes", "INT32", rows)
    expected = Reference(model)({"bytes": rows})["target_label"]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    told = [labels["target_labels_space"][i] for i in scores.argmax(axis=1)]
    assert sum(map(str.__eq__, told, FILES)) >= len(FILES) - 1, told


def test_lines_of_text_are_read(server: Server) -> None:
    """An encoder with attention behind convolutions; lines of any width, several in a batch."""
    file = packaged(lambda: from_wheel(RAPIDOCR, "rapidocr/models/PP-OCRv6_rec_small.onnx"))
    model = sent(server, "rec", file)
    drawn, turned = lines_of_text(24)
    upright = drawn[turned == 0]
    rows = np.ascontiguousarray(((upright[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2))
    scores = asked(server, "rec", "x", "FP32", rows)
    expected = Reference(model)({"x": rows})["fetch_name_0"]
    assert scores.shape == expected.shape
    np.testing.assert_array_equal(scores.argmax(axis=2), expected.argmax(axis=2))
    letters = ["", *next(p.value for p in model.metadata_props if p.key == "character").split("\n"), " "]
    read = [_decoded(row.argmax(axis=1), letters) for row in scores]
    words = set((ROOT / "LICENSE").read_text().replace(",", " ").replace(".", " ").split())
    found = [word for text in read for word in text.replace(",", " ").replace(".", " ").split()]
    assert sum(word in words for word in found) > 0.7 * len(found) > 10, read


def _decoded(places: np.ndarray, letters: list[str]) -> str:
    """Letters of a CTC alphabet: repeated ones are one, 0 is none."""
    kept = places[np.flatnonzero(np.diff(places, prepend=-1))]
    return "".join(letters[i] for i in kept if i)


def test_text_is_found_on_a_page(server: Server) -> None:
    """Height and width are the page's own; where words are drawn, the map says so."""
    file = packaged(lambda: from_wheel(RAPIDOCR, "rapidocr/models/PP-OCRv6_det_small.onnx"))
    model = sent(server, "det", file)
    lines, _ = lines_of_text(3, seed=5)
    page = np.full((256, 320, 3), 220, np.uint8)
    for i, line in enumerate(lines):
        page[20 + 80 * i : 68 + 80 * i, 40:232] = line
    mean, spread = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    row = ((page.astype(np.float32) / 255 - mean) / spread).transpose(2, 0, 1)[None]
    found = asked(server, "det", "x", "FP32", np.ascontiguousarray(row, np.float32))[0, 0]
    expected = Reference(model)({"x": np.ascontiguousarray(row, np.float32)})["fetch_name_0"][0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    inside = np.zeros(found.shape, bool)
    for i in range(3):
        inside[20 + 80 * i : 68 + 80 * i, 40:232] = True
    assert (found > 0.3)[inside].sum() > 20 * (found > 0.3)[~inside].sum() + 500
