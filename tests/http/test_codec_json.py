"""JSON data to arrays and back: every datatype, nesting, ranges, and what is not a number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.http.errors import BadRequest
from engines.tensor import BY_NAME
from tests.hostile.codecs import call, decode_one, encode, request, tensor

INTS = [name for name in BY_NAME if "INT" in name]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]


@pytest.mark.parametrize("name", INTS)
def test_integers_at_both_ends_of_their_range(name):
    low, high = np.iinfo(BY_NAME[name].numpy).min, np.iinfo(BY_NAME[name].numpy).max
    array = decode_one([int(low), 0, int(high)], [3], name)
    assert array.tolist() == [low, 0, high]
    described, _ = encode(array, name, binary=False)
    assert described == {"name": "y", "shape": [3], "datatype": name, "data": [low, 0, high]}
    for beyond in (int(low) - 1, int(high) + 1, 10**30, -(10**30)):
        with pytest.raises(BadRequest, match=f"'data' of input 'x' cannot be read as {name}"):
            decode_one([beyond], [1], name)


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
    array = decode_one([0, -1.5, 2.25, -0.0, 1e-7], [5], name)
    assert array.astype(np.float64)[:3].tolist() == [0, -1.5, 2.25]
    assert np.signbit(array[3])
    described, _ = encode(array, name, binary=False)
    again = decode_one(described["data"], [5], name)
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", FLOATS)
def test_what_json_has_no_number_for_goes_in_and_out_as_triton_writes_it(name):
    array = decode_one("[NaN, Infinity, -Infinity, 1]", [4], name)
    values = array.astype(np.float64)
    assert np.isnan(values[0])
    assert values[1:].tolist() == [np.inf, -np.inf, 1]
    described, _ = encode(array, name, binary=False)
    assert json.dumps(described["data"]) == "[NaN, Infinity, -Infinity, 1.0]"


@pytest.mark.parametrize(("name", "value"), [("FP16", 70000), ("FP32", 1e39), ("FP32", -1e300), ("BF16", 1e39)])
def test_a_float_out_of_range_is_not_silently_infinite(name, value):
    with pytest.raises(BadRequest, match=f"cannot be read as {name}: a number is out of range"):
        decode_one([value], [1], name)
    with pytest.raises(BadRequest, match="out of range"):
        decode_one(f"[Infinity, {value}]", [2], name)


@pytest.mark.parametrize("text", ["[1e400]", "[-1e400]", "[1" + "0" * 400 + "]", "[NaN, 1" + "0" * 400 + "]"])
def test_numbers_beyond_a_double(text):
    with pytest.raises(BadRequest, match="cannot be read as FP64"):
        decode_one(text, [text.count(",") + 1], "FP64")


def test_bool():
    assert decode_one([True, False, 0, 1], [4], "BOOL").tolist() == [True, False, False, True]
    described, _ = encode(np.array([True, False]), "BOOL", binary=False)
    assert described["data"] == [True, False]
    for wrong in (2, -1, 256, 0.5, "true", None):
        with pytest.raises(BadRequest, match="cannot be read as BOOL"):
            decode_one([wrong], [1], "BOOL")


def test_bytes():
    array = decode_one(["", "a", "ä\u0000", "\U0001f600"], [2, 2], "BYTES")
    assert array.tolist() == [[b"", b"a"], ["ä\0".encode(), "\U0001f600".encode()]]
    described, _ = encode(np.array([b"a", b"\xff", "ä".encode()], object), "BYTES", binary=False)
    assert described["data"] == ["a", "\ufffd", "ä"]
    for wrong in (1, True, None, ["x"], {}):
        with pytest.raises(BadRequest, match=r"cannot be read as BYTES|shape"):
            decode_one(["a", wrong], [2], "BYTES")


@pytest.mark.parametrize("name", ["FP32", "INT32", "UINT8", "FP16"])
@pytest.mark.parametrize("wrong", ["1", True, None, [1], {"a": 1}, "NaN"])
def test_what_is_no_number(name, wrong):
    with pytest.raises(BadRequest, match=f"'data' of input 'x' cannot be read as {name}"):
        decode_one([1, wrong], [2], name)


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("text", ["[1.5]", "[NaN]", "[1e30]", "[Infinity]"])
def test_what_is_no_integer(name, text):
    with pytest.raises(BadRequest, match=f"cannot be read as {name}"):
        decode_one(text, [1], name)


NESTED = [
    [1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [[[1], [2], [3]], [[4], [5], [6]]], [[[[1, 2, 3, 4, 5, 6]]]],
]  # fmt: skip
RAGGED = [
    [[1], [1, 1]], [[1, 1], [1]], [[1], 1, [1]], [1, [1, 1]], [[[1, 1]], [[1], [1]]], [[], [1, 1, 1]],
]  # fmt: skip


@pytest.mark.parametrize("data", NESTED)
def test_nesting_is_the_clients_choice(data):
    for name in ("FP32", "INT64"):
        assert decode_one(data, [2, 3], name).tolist() == [[1, 2, 3], [4, 5, 6]]
    as_strings = json.loads(json.dumps(data), parse_int=str)
    assert decode_one(as_strings, [2, 3], "BYTES").tolist() == [[b"1", b"2", b"3"], [b"4", b"5", b"6"]]


@pytest.mark.parametrize("name", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize(
    "data", [[[1], [1, 1]], [[1, 1], [1]], [[1], 1, [1]], [1, [1, 1]], [[[1, 1]], [[1], [1]]], [[], [1, 1, 1]]]
)
def test_ragged_lists(name, data):
    if name == "BYTES":
        data = json.loads(json.dumps(data), parse_int=str)
    with pytest.raises(BadRequest, match=f"cannot be read as {name}"):
        decode_one(data, [3], name)


@pytest.mark.parametrize(
    ("data", "shape"), [([1, 2, 3], [4]), ([1, 2, 3], [1, 2]), ([], [1]), ([[], []], [2]), ([1], [0])]
)
def test_too_much_or_too_little_data(data, shape):
    with pytest.raises(BadRequest, match=r"shape \[.*\] has \d+ elements, data has \d+"):
        decode_one(data, shape, "FP32")


@pytest.mark.parametrize("data", [1, "text", None, True, {"a": [1]}])
def test_data_that_is_no_list(data):
    body = request(tensor(None, [1])).replace(b'"datatype"', b'"data": %s, "datatype"' % json.dumps(data).encode())
    with pytest.raises(BadRequest, match="'data' of input 'x' is not a list"):
        call(body)


@pytest.mark.parametrize("depth", [64, 65, 90, 97])
def test_data_nested_as_deep_as_json_may(depth):
    body = request(tensor("@", [1])).replace(b'"@"', b"[" * depth + b"1" + b"]" * depth)
    if depth <= 64:
        assert call(body)[0].inputs["x"].array.tolist() == [1]
    else:
        with pytest.raises(BadRequest, match="cannot be read as FP32"):
            call(body)


def test_scalars_have_a_shape_of_nothing():
    assert decode_one([7], [], "FP32").shape == ()
    described, _ = encode(np.array(7, np.float32), "FP32", binary=False, batch_axis=None)
    assert described["shape"] == []
    assert described["data"] == [7.0]
