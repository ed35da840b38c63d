"""Model files in a load call: base64 of any length, decoded piece by piece as if it were decoded at once."""

from __future__ import annotations

import base64
import random

import pytest

from app.config import ModelConfig
from app.http.errors import BadRequest
from app.http.files import brought_files

PIECE = 1_048_576
CONFIG = ModelConfig()


def decoded(text: object) -> bytes:
    return brought_files({"file:1/model.onnx": text, "other": 1}, CONFIG)[1]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 * PIECE // 4 - 1, 3 * PIECE // 4, 3 * PIECE // 4 + 1, 2_000_001])
def test_any_length(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert decoded(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    "text",
    [
        "A", "A===", "AAA", "AA==AA==", "AAAA\n", "ÄÄÄÄ", "A" * PIECE + "A", "A" * (PIECE - 1) + "=AAAA",
        "A" * (PIECE - 2) + "==AAAA", "A" * PIECE + "====", "A" * PIECE + "A-_A",
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"parameter 'file:1/model.onnx' is not base64"):
        decoded(text)


@pytest.mark.parametrize("key", ["file:0/model.onnx", "file:x/model.onnx", "file:1/other", "file:1/../model.onnx"])
def test_other_names_are_refused(key: str) -> None:
    with pytest.raises(BadRequest, match="expected file:<version>"):
        brought_files({key: ""}, CONFIG)


def test_a_file_needs_a_config() -> None:
    with pytest.raises(BadRequest, match="needs the parameter 'config'"):
        brought_files({"file:1/model.onnx": ""}, None)
