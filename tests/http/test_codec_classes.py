"""The classification extension: best first, "<value>:<index>[:<label>]", as BYTES."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from app.http.errors import BadRequest
from tests.hostile.codecs import encode

LABELS = {"y": ("zero", "one", "two")}


def classes(array: np.ndarray, count: int, datatype: str = "FP32", **keys) -> tuple[list[int], list[str]]:
    described, _ = encode(array, datatype, binary=False, classes={"y": count}, **keys)
    assert described["datatype"] == "BYTES"
    return described["shape"], described["data"]


ROWS = np.array([[0.1, 0.7, 0.2], [3, -1, 2]], np.float32)


def test_best_first_with_labels():
    assert classes(ROWS, 2, labels=LABELS) == (
        [2, 2], ["0.700000:1:one", "0.200000:2:two", "3.000000:0:zero", "2.000000:2:two"],
    )  # fmt: skip


def test_without_labels_or_with_too_few():
    assert classes(ROWS[:1], 1)[1] == ["0.700000:1"]
    assert classes(ROWS[:1], 3, labels={"y": ("zero",)})[1] == ["0.700000:1", "0.200000:2", "0.100000:0:zero"]


def test_more_classes_than_there_are():
    assert classes(ROWS, 2**62)[0] == [2, 3]


def test_ties_keep_their_order():
    assert classes(np.ones((1, 4), np.float32), 3)[1] == ["1.000000:0", "1.000000:1", "1.000000:2"]
    assert classes(np.array([[2, 5, 5, 1]], np.int32), 4, "INT32")[1] == ["5:1", "5:2", "2:0", "1:3"]


@pytest.mark.parametrize(("name", "kind"), [("INT64", np.int64), ("UINT64", np.uint64)])
def test_integers_are_compared_exactly(name, kind):
    """As floats, these would tie."""
    values = np.array([[2**53, 2**53 + 1, 2**53 + 2]], kind)
    assert classes(values, 2, name)[1] == [f"{2**53 + 2}:2", f"{2**53 + 1}:1"]


def test_small_and_signed_integers():
    assert classes(np.array([[0, 255, 128]], np.uint8), 3, "UINT8")[1] == ["255:1", "128:2", "0:0"]
    assert classes(np.array([[-128, 127]], np.int8), 2, "INT8")[1] == ["127:1", "-128:0"]


@pytest.mark.parametrize(("name", "kind"), [("FP16", np.float16), ("BF16", ml_dtypes.bfloat16), ("FP64", np.float64)])
def test_every_float_is_written_alike(name, kind):
    assert classes(np.array([[0.5, 1.5]]).astype(kind), 2, name)[1] == ["1.500000:1", "0.500000:0"]


def test_nan_is_never_best():
    assert classes(np.array([[np.nan, 1, np.inf, -np.inf]], np.float32), 4)[1] == [
        "inf:2", "1.000000:1", "-inf:3", "nan:0",
    ]  # fmt: skip


def test_other_dimensions_count_as_one():
    assert classes(np.arange(6, dtype=np.float32).reshape(1, 2, 3), 1) == ([1, 1], ["5.000000:5"])


def test_a_model_without_rows():
    assert classes(np.array([1, 3, 2], np.float32), 2, batch_axis=None) == ([2], ["3.000000:1", "2.000000:2"])


def test_binary():
    described, data = encode(ROWS[:1], "FP32", binary=True, classes={"y": 1})
    assert described["parameters"] == {"binary_data_size": 14}
    assert data == b"\x0a\0\0\x000.700000:1"


def test_text_has_no_classes():
    with pytest.raises(BadRequest, match="output 'y' has no numbers to classify"):
        classes(np.array([[b"a"]], object), 1, "BYTES")
