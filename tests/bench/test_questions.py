"""Requests as bytes: what they hold, by the server's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.bench.errors import BenchFailed
from app.bench.inputs import ASSUMED_SIZE, drawn, given, with_sizes
from app.bench.questions import made
from app.bench.target import Target, Tensor
from engines.tensor import datatype


def target(*inputs: Tensor) -> Target:
    metadata = {"inputs": [{"name": t.name, "datatype": t.datatype, "shape": [*t.shape]} for t in inputs]}
    return Target("m", "1", "/v2/models/m", "bitserve", inputs, (), metadata)


IMAGE = Tensor("image", "FP32", (-1, 2, 3), has_rows=True)
MASK = Tensor("mask", "BOOL", (-1, 4), has_rows=True)
SCALE = Tensor("scale", "FP16", (1,), has_rows=False)
WORDS = Tensor("words", "INT64", (-1, -1), has_rows=True)


def read(request: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Headers, and arrays by input name."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /v2/models/m/infer HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert int(headers["content-length"]) == len(body)
    json_length = int(headers.get("inference-header-content-length", len(body)))
    document, at, arrays = json.loads(body[:json_length]), json_length, {}
    assert document["parameters"] == {"binary_data_output": json_length < len(body)}
    for one in document["inputs"]:
        kind = datatype(one["datatype"]).numpy
        if "data" in one:
            values = np.array(one["data"], kind)
        else:
            size = one["parameters"]["binary_data_size"]
            values, at = np.frombuffer(body[at : at + size], kind), at + size
        arrays[one["name"]] = values.reshape(one["shape"])
    assert at == len(body) or json_length == len(body)
    return headers, arrays


@pytest.mark.parametrize("rows", [1, 3])
def test_bytes_and_json_hold_the_same_values_and_requests_differ(rows: int) -> None:
    model = target(IMAGE, MASK, SCALE)
    shapes, assumed = with_sizes(model, {})
    assert (shapes, assumed) == ({"image": (1, 2, 3), "mask": (1, 4), "scale": (1,)}, [])
    arrays = drawn(model, rows, shapes, seed=5)
    asked = {"rows": rows, "host": "h:1", "headers": (("X-Key", "k"),)}
    in_bytes = [read(request) for request in made(model, arrays, binary=True, **asked)]  # type: ignore[arg-type]
    in_json = [read(request) for request in made(model, arrays, binary=False, **asked)]  # type: ignore[arg-type]
    assert len(in_bytes) == len(in_json) == 64
    for (headers, one), (_, other) in zip(in_bytes, in_json, strict=True):
        assert (headers["host"], headers["x-key"]) == ("h:1", "k")
        assert (one["image"].shape, one["mask"].shape, one["scale"].shape) == ((rows, 2, 3), (rows, 4), (1,))
        for name in one:
            assert np.array_equal(one[name], other[name])
    assert len({one["image"].tobytes() for _, one in in_bytes}) == 64
    again = drawn(model, rows, shapes, seed=5)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["image"], drawn(model, rows, shapes, seed=6)["image"])


def test_rows_of_files_are_taken_in_turn(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.arange(30, dtype=np.float32).reshape(5, 2, 3))
    arrays = given(target(IMAGE), [f"image={tmp_path / 'image.npy'}"])
    firsts = [
        [int(row[0, 0]) // 6 for row in read(request)[1]["image"]]
        for request in made(target(IMAGE), arrays, 2, host="h", headers=(), binary=True)
    ]
    assert firsts == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]


@pytest.mark.parametrize(
    "document",
    [
        {"image": [[[1, 2, 3], [4, 5, 6]]]},
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2, 3], "data": [1, 2, 3, 4, 5, 6]}]},
        [[1, 2, 3], [4, 5, 6]],
    ],
)
def test_values_from_a_json_file(document: object, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document))
    for argument in (f"{tmp_path / 'x.json'}", f"image={tmp_path / 'x.json'}"):
        array = given(target(IMAGE), [argument])["image"]
        assert array.dtype == np.float32
        assert array.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "--input "),
        ('{"inputs":[{"name":"image"}]}', "need name, shape and data"),
        ("[[1,2],[3,4]]", r"has the shape \[1, 2, 2\]; expected \[-1, 2, 3\]"),
        ("[]", "has the shape"),
        ('{"other":[1]}', "no input 'other'"),
    ],
)
def test_a_json_file_that_does_not_fit(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchFailed, match=said):
        given(target(IMAGE), [str(tmp_path / "x.json")])


def test_variable_sizes_are_assumed_and_told_or_given() -> None:
    assert with_sizes(target(WORDS), {}) == ({"words": (1, ASSUMED_SIZE)}, ["words"])
    assert with_sizes(target(WORDS), {"words": (7,)}) == ({"words": (1, 7)}, [])
    for wrong in ((7, 7), (), (1, 7)):
        with pytest.raises(BenchFailed, match=r"--shape words: .* does not fit \[-1\]; -1 is any size"):
            with_sizes(target(WORDS), {"words": wrong})
    with pytest.raises(BenchFailed, match="the model has no such input; it takes words"):
        with_sizes(target(WORDS), {"x": (7,)})


def test_large_rows_make_fewer_requests() -> None:
    wide = Tensor("x", "FP32", (-1, 8_000_000), has_rows=True)
    arrays = drawn(target(wide), 1, with_sizes(target(wide), {})[0], seed=0)
    assert len(arrays["x"]) == 2
    assert len(made(target(wide), arrays, 1, host="h", headers=(), binary=True)) == 2


def test_what_cannot_be_drawn_or_written_is_said() -> None:
    texts = Tensor("t", "BYTES", (-1,), has_rows=True)
    with pytest.raises(BenchFailed, match=r"'t' is BYTES, which cannot be drawn; give --input t=FILE.npy"):
        drawn(target(texts), 1, {"t": (1,)}, seed=0)
    with pytest.raises(BenchFailed, match=r"holds NaN or infinity, .* send them with --binary"):
        made(target(SCALE), {"scale": np.array([np.nan], np.float16)}, 1, host="h", headers=(), binary=False)
    with pytest.raises(BenchFailed, match=r"bytes that are no UTF-8; send them with --binary"):
        made(target(texts), {"t": np.array([b"\xff"], np.object_)}, 1, host="h", headers=(), binary=False)
