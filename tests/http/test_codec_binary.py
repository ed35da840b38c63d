"""The binary extension and raw bodies: sizes, order, headers; and a random array survives both ways."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.http.errors import BadRequest
from engines.tensor import BY_NAME, TensorSpec
from tests.hostile.codecs import call, decode_one, encode, endpoint, request, tensor

X = np.arange(4, dtype="<f4")[None]


def binary(*parts: tuple[dict, bytes], **keys) -> tuple[bytes, bytes]:
    head = request(*(described for described, _ in parts), **keys)
    return head + b"".join(data for _, data in parts), str(len(head)).encode()


def part(name: str, array: np.ndarray, datatype: str = "FP32", size: object = None) -> tuple[dict, bytes]:
    data = array.tobytes()
    described = tensor(None, array.shape, datatype, name=name)
    described["parameters"] = {"binary_data_size": len(data) if size is None else size}
    return described, data


def pack(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "BYTES"])
def test_every_datatype(name):
    array = np.array([[0, 1], [1, 1]]).astype(BY_NAME[name].numpy)
    body, header = binary(part("x", array, name))
    decoded = call(body, header)[0].inputs["x"]
    assert decoded.datatype == name
    assert decoded.array.dtype == array.dtype
    assert decoded.array.tobytes() == array.tobytes()
    described, data = encode(array, name, binary=True)
    assert described == {
        "name": "y", "shape": [2, 2], "datatype": name, "parameters": {"binary_data_size": array.nbytes}
    }  # fmt: skip
    assert data == array.tobytes()


def test_bytes():
    items = [b"", b"a", b"\xff\x00", b"longer than four"]
    data = pack(items)
    described = tensor(None, [2, 2], "BYTES", parameters={"binary_data_size": len(data)})
    body, header = binary((described, data))
    array = call(body, header)[0].inputs["x"].array
    assert array.ravel().tolist() == items
    described, encoded = encode(array, "BYTES", binary=True)
    assert described["parameters"] == {"binary_data_size": len(data)}
    assert encoded == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x01", "incomplete string length indicator for input 'x'"),
        (b"\x05\0\0\0abc", "incomplete string data for input 'x': expected 5 bytes, 3 are left"),
        (b"\xff\xff\xff\xffabc", "incomplete string data for input 'x': expected 4294967295 bytes"),
        (pack([b"a"]), "input 'x' has 1 strings, its shape [2] has 2 elements"),
        (pack([b"a"] * 3), "input 'x' has more than 2 strings, its shape [2] has 2 elements"),
        (b"", "input 'x' has 0 strings"),
    ],
)
def test_broken_bytes(data, said):
    body, header = binary((tensor(None, [2], "BYTES", parameters={"binary_data_size": len(data)}), data))
    with pytest.raises(BadRequest) as caught:
        call(body, header)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("size", "extra", "said"),
    [
        (12, b"", "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 12"),
        (20, b"1234", "input byte size mismatch for input 'x' for model 'm'. Expected 16, got 20"),
        (16, b"1", "unexpected additional input data for model 'm'"),
        (2**70, b"", "byte size mismatch"),
        (-16, b"", "binary_data_size of input 'x' must be an unsigned integer, got -16"),
        (16.0, b"", "must be an unsigned integer, got 16.0"),
        ("16", b"", "must be an unsigned integer, got '16'"),
        (True, b"", "must be an unsigned integer, got True"),
    ],
)
def test_sizes_that_do_not_fit(size, extra, said):
    body, header = binary(part("x", X, size=size))
    with pytest.raises(BadRequest) as caught:
        call(body + extra, header)
    assert said in str(caught.value)


def test_missing_bytes_are_counted():
    body, header = binary(part("x", X))
    with pytest.raises(BadRequest) as caught:
        call(body[:-5], header)
    assert str(caught.value) == "unexpected size for input 'x', expecting 5 additional bytes for model 'm'"


def test_bytes_behind_json_data_belong_to_nobody():
    body = request(tensor())
    with pytest.raises(BadRequest, match="unexpected additional input data for model 'm'"):
        call(body + b"1234", str(len(body)).encode())


def test_without_a_header_all_of_it_is_json():
    body, _ = binary(part("x", X))
    with pytest.raises(BadRequest, match="failed to parse the request JSON buffer"):
        call(body)


@pytest.mark.parametrize(
    "header", [b"99999999999", b"-1", b"", b" ", b"12x", b"1.0", b"0x10", b"\xb2", b"9" * 5000, b"1_0", b"+5"]
)
def test_header_lengths_out_of_range(header):
    with pytest.raises(BadRequest, match=r"inference header size should be in range \(0, "):
        call(request(tensor()), header)


def test_exactly_one_source_of_data():
    both = tensor(parameters={"binary_data_size": 16})
    none = tensor(None)
    for described in (both, none):
        body, header = binary((described, X.tobytes()))
        with pytest.raises(BadRequest, match="must set exactly one of 'data' and the parameter 'binary_data_size'"):
            call(body, header)
    shared = tensor(None, parameters={"shared_memory_region": "r"})
    with pytest.raises(BadRequest, match="shared memory, which this server does not offer"):
        call(request(shared))
    with pytest.raises(BadRequest, match="output 'y' uses shared memory"):
        call(request(tensor(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]))


def test_duplicates():
    with pytest.raises(BadRequest, match="input 'x' already exists in request"):
        call(request(tensor(), tensor()))
    with pytest.raises(BadRequest, match="output 'Y' already exists in request"):
        call(request(tensor(), outputs=[{"name": "Y"}, {"name": "Y"}]))


# -- raw bodies --------------------------------------------------------------------------------------------------


def raw(body: bytes, *specs: TensorSpec):
    decoded, wanted = call(body, b"0", endpoint(inputs=specs))
    assert wanted.binary_default
    return decoded.inputs[specs[0].name].array


def test_raw_body_is_one_row():
    assert raw(X.tobytes(), TensorSpec("x", "FP32", (-1, 4), 0)).tolist() == X.tolist()
    assert raw(X.tobytes(), TensorSpec("x", "FP32", (-1, -1), 0)).shape == (1, 4)
    assert raw(X.tobytes(), TensorSpec("x", "FP32", (-1, 2, -1), 0)).shape == (1, 2, 2)
    assert raw(X.tobytes(), TensorSpec("x", "FP32", (4,))).shape == (4,)
    assert raw(b"anything \xff", TensorSpec("x", "BYTES", (-1, 1), 0)).tolist() == [[b"anything \xff"]]
    assert raw(b"", TensorSpec("x", "BYTES", (1,))).tolist() == [b""]


def test_raw_bodies_have_three_distinct_errors():
    one = TensorSpec("x", "FP32", (-1, 4), 0)
    with pytest.raises(BadRequest, match=r"Raw request must only have 1 input \(found 2\) to be deduced for model 'm'"):
        raw(b"1234", one, TensorSpec("z", "FP32", (-1, 4), 0))
    with pytest.raises(BadRequest, match=r"'x' can not be deduced because there are more than one variable-sized dim"):
        raw(b"1234", TensorSpec("x", "FP32", (-1, -1, -1), 0))
    with pytest.raises(BadRequest, match=r"For BYTES datatype raw input 'x', the model must have input shape \[1\]"):
        raw(b"1234", TensorSpec("x", "BYTES", (-1, 3), 0))


@pytest.mark.parametrize("size", [0, 1, 15, 17, 32])
def test_raw_bodies_of_the_wrong_size(size):
    with pytest.raises(BadRequest, match=f"Expected 16, got {size}"):
        raw(b"x" * size, TensorSpec("x", "FP32", (-1, 4), 0))
    if size % 8:
        with pytest.raises(BadRequest, match=f"Expected a multiple of 8, got {size}"):
            raw(b"x" * size, TensorSpec("x", "FP32", (-1, 2, -1), 0))


# -- any array ---------------------------------------------------------------------------------------------------

_NUMERIC = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
_SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


@st.composite
def tensors(draw) -> tuple[str, np.ndarray]:
    name = draw(st.sampled_from([*_NUMERIC, "BF16", "BYTES"]))
    shape = draw(_SHAPES)
    if name == "BF16":
        words = draw(arrays.arrays(np.uint16, shape))
        array = words.view(ml_dtypes.bfloat16)
        return name, np.where(np.isnan(array), np.array(1, ml_dtypes.bfloat16), array)
    if name == "BYTES":
        count = int(np.prod(shape))
        texts = draw(st.lists(st.text(max_size=6), min_size=count, max_size=count))
        array = np.empty(count, object)
        array[:] = [text.encode() for text in texts]
        return name, array.reshape(shape)
    kind = BY_NAME[name].numpy
    elements = arrays.from_dtype(kind, allow_nan=False) if kind.kind == "f" else None
    return name, draw(arrays.arrays(kind, shape, elements=elements))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tensors())
def test_binary_round_trip(drawn):
    name, array = drawn
    described, data = encode(array, name, binary=True)
    sent = tensor(None, described["shape"], name, parameters=described["parameters"])
    body, header = binary((sent, data))
    assert same(call(body, header)[0].inputs["x"].array, array)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tensors(), st.booleans())
def test_json_round_trip(drawn, nested):
    name, array = drawn
    described, _ = encode(array, name, binary=False)
    data = np.array(described["data"], object).reshape(array.shape).tolist() if nested else described["data"]
    assert same(decode_one(json.dumps(data), described["shape"], name), array)
