"""The check of answers by likeness, against the check that reads each in full."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.answers import Answers, wrong_with
from app.bench.target import Tensor

LOGITS = Tensor("logits", "FP32", (-1, 3), has_rows=True)
SIZES = Tensor("sizes", "INT64", (-1,), has_rows=False)


def binary(
    rows: int, *, extra: bytes = b"", size: int | None = None, name: str = "logits", shape: object = None
) -> bytes:
    data = np.arange(rows * 3, dtype=np.float32).tobytes()
    output = {
        "name": name, "datatype": "FP32", "shape": shape or [rows, 3],
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }  # fmt: skip
    return json.dumps({"model_name": "m{}", "outputs": [output]}, separators=(",", ":")).encode() + data + extra


def in_json(rows: int, values: Sequence[float], *, name: str = "logits") -> bytes:
    output = {"name": name, "datatype": "FP32", "shape": [rows, 3], "data": list(values)}
    return json.dumps({"model_name": "m", "outputs": [output]}, separators=(",", ":")).encode()


def test_right_answers() -> None:
    for body in (binary(2), in_json(2, [1.5] * 6), in_json(2, [[1, 2, 3], [4, 5, 6]])):  # type: ignore[list-item]
        assert wrong_with(body, [LOGITS], 2) == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no inference answer"),
        (b"[" * 5000, "no inference answer"),
        (b'{"error":"x"}', "no inference answer"),
        (binary(2, extra=b"x"), "25 bytes follow the JSON, its sizes add up to 24"),
        (binary(2)[:-1], "23 bytes follow"),
        (binary(2, size=20), "'logits' has 20 bytes; its shape says 6 values"),
        (binary(1), "has the shape [1, 3]; expected [2, 3]"),
        (binary(2, shape=[6]), "has the shape [6]; expected [2, 3]"),
        (binary(2, name="other"), "has the outputs other; the model has logits"),
        (in_json(2, [1.0] * 5), "has 5 values; its shape says 6"),
        (in_json(2, []), "has 0 values"),
        (b'{"outputs":[]}', "has the outputs none; the model has logits"),
        (b'{"outputs":[{"name":"logits","datatype":"INT8","shape":[2,3],"data":[1,2,3,4,5,6]}]}', "is INT8; expected"),
        (b'{"outputs":[{"name":"logits","datatype":"FP32","shape":[2,3]}]}', "has no data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(body: bytes, said: str) -> None:
    assert said in wrong_with(body, [LOGITS], 2)


def test_sizes_that_the_answer_chooses_may_change() -> None:
    answers = Answers([SIZES], rows=1)
    for count in (3, 3, 2, 0, 3):
        output = {"name": "sizes", "datatype": "INT64", "shape": [count], "data": [7] * count}
        assert answers(0, json.dumps({"outputs": [output]}, separators=(",", ":")).encode()) == ""


@given(st.data())
def test_likeness_finds_what_reading_finds(data: st.DataObject) -> None:
    """Whatever was found right before: cut, lengthened, of other rows and names, in bytes and JSON."""
    answers = Answers([LOGITS], rows=2)
    bodies = st.one_of(
        st.builds(binary, st.integers(1, 3), extra=st.sampled_from([b"", b"x"]), size=st.sampled_from([None, 24, 20])),
        st.builds(
            in_json, st.integers(1, 3), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=10),
            name=st.sampled_from(["logits", "other"]),
        ),
    )  # fmt: skip
    for number in range(6):
        body = data.draw(bodies)
        body = body[: data.draw(st.sampled_from([len(body), len(body), len(body) - 1, len(body) // 2]))]
        assert (answers(number, body) == "") == (wrong_with(body, [LOGITS], 2) == "")
