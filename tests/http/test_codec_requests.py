"""The JSON around the tensors: ids, parameters, outputs, unknown keys; what is too big, too deep, of a wrong type."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from app.http import codec
from app.http.errors import BadRequest
from tests.hostile.codecs import call, encode, request, tensor
from tests.hostile.codecs import endpoint as make_endpoint


def refused(body: bytes, said: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        call(body)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - started_s < 5, "an answer that takes long holds up everybody"


@pytest.mark.parametrize(
    ("given", "echoed"), [({}, None), ({"id": ""}, None), ({"id": "a"}, "a"), ({"id": "ä\n"}, "ä\n")]
)
def test_id_is_echoed_unless_empty(given, echoed):
    _, wanted = call(request(tensor(), **given))
    body, json_bytes = codec.encode({}, wanted, make_endpoint())
    assert json_bytes is None
    document = json.loads(body)
    assert document.get("id") == echoed
    assert ("id" in document) == (echoed is not None)
    assert document["model_version"] == "1"


def test_priority_and_timeout():
    decoded, _ = call(request(tensor(), parameters={"priority": 3, "timeout": 2_500_000}))
    assert (decoded.priority, decoded.timeout_us) == (3, 2_500_000)
    decoded, _ = call(request(tensor()))
    assert (decoded.priority, decoded.timeout_us) == (0, 0)


@pytest.mark.parametrize("value", [7, 2**62, 2**64 - 1, "stream-1"])
def test_a_sequence_id_is_a_number_or_a_string(value):
    decoded, _ = call(request(tensor(), parameters={"sequence_id": value}))
    assert decoded.sequence_id == value
    with pytest.raises(BadRequest, match="sequence_id"):
        call(request(tensor(), parameters={"sequence_id": -1}))


@pytest.mark.parametrize("key", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", True, 2**64, 2**80, 1e300])
def test_priority_and_timeout_are_unsigned_integers(key, value):
    refused(request(tensor(), parameters={key: value}), f"parameter '{key}' must be an unsigned integer")


def test_they_have_all_64_bits():
    decoded, _ = call(request(tensor(), parameters={"priority": 2**64 - 1, "timeout": 2**64 - 1}))
    assert (decoded.priority, decoded.timeout_us) == (2**64 - 1, 2**64 - 1)


def test_unknown_keys_and_parameters_are_tolerated():
    extra = {"model_name": "m", "zz": {"a": [1, None, {"b": 2}]}}
    custom = {"mine": "x", "flag": True, "rate": 0.5, "sequence_id": 7, "sequence_start": True, "triton_x": 1}
    decoded, _ = call(request(tensor(extra=1), parameters=custom, outputs=[{"name": "y", "extra": 2}], **extra))
    assert decoded.outputs == ("y",)


@pytest.mark.parametrize(("outputs", "names"), [(None, None), ([], None), ([{"name": "y"}, {"name": "z"}], ("y", "z"))])
def test_no_outputs_are_all_outputs(outputs, names):
    assert call(request(tensor(), outputs=outputs))[0].outputs == names


def test_wanted_kinds_of_output():
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b", "parameters": {"classification": 2}}]
    _, wanted = call(request(tensor(), outputs=outputs, parameters={"binary_data_output": True}))
    assert wanted.binary_default
    assert wanted.binary == {"a": False}
    assert wanted.classes == {"b": 2}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("binary_data", 1, "parameter 'binary_data' must be true or false, got 1"),
        ("binary_data", "true", "must be true or false"),
        ("classification", -1, "parameter 'classification' must be an unsigned integer"),
        ("classification", True, "must be an unsigned integer"),
        ("classification", "2", "must be an unsigned integer"),
    ],
)
def test_parameters_of_outputs(key, value, said):
    refused(request(tensor(), outputs=[{"name": "y", "parameters": {key: value}}]), said)


def test_binary_data_output_is_a_flag():
    refused(request(tensor(), parameters={"binary_data_output": 1}), "'binary_data_output' must be true or false")


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nonsense", b"[]", b"null", b'"text"', b"{}", b'{"inputs":1}', b'{"inputs":[1]}',
        b'{"inputs":[{}]}', b'{"inputs":null}', b"\xff\xfe", b'{"inputs":[]} trailing', b"NaN", b'{"id":NaN}',
        request(tensor(name=1)), request(tensor(datatype=1)), request(tensor(datatype=None)),
        request(tensor(shape="4")), request(tensor(shape=[1.5])), request(tensor(shape=["1"])),
        request(tensor(shape=[True])), request(tensor(shape=None)), request(tensor(), id=5), request(tensor(), id=None),
        request(tensor(), parameters=[]), request(tensor(), parameters={"a": None}),
        request(tensor(), parameters={"a": []}), request(tensor(), outputs={}), request(tensor(), outputs=[{}]),
        request(tensor(), outputs=["y"]), request(tensor(parameters={"a": {}})), request({"name": "\ud800"}),
        request(tensor()).replace(b'"x"', b'"\\ud800"'), request(tensor()).replace(b'"x"', b'"\xff"'),
        request(tensor([float("nan")], ["x"])), request(tensor([float("nan")]), id=2**100),
        request(tensor([float("nan")]), parameters={"a": float("inf")}), request(tensor([float("nan")]), zz=2**100),
        b'{"inputs":[[NaN]]}', b'{"inputs":{"NaN":1}}', b'{"inputs":[NaN]}',
        request(tensor([float("nan")], name="\ud800")),
    ],
)  # fmt: skip
def test_what_is_no_request(body):
    with pytest.raises(BadRequest, match=r"^(failed to (parse|read) the request|input 'x' |'data' of|unable to parse)"):
        call(body)


def test_unknown_datatype_lists_the_known():
    refused(request(tensor(datatype="STRING")), "unknown datatype 'STRING'; expected one of BOOL, UINT8")


def test_negative_dimension():
    refused(request(tensor(shape=[-1, 4])), "failed to read the request")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([2**62, 4], "causes total element count to exceed maximum size of 9223372036854775807"),
        ([2**63], "causes total element count to exceed maximum size"),
        ([2**100, 0], "causes total element count to exceed maximum size"),
        ([0, 2**62, 2**62], "causes total element count to exceed maximum size"),
        ([2**61, 1], "byte size overflow for input 'x'"),
        ([0, 2**62], "byte size overflow for input 'x'"),
        ([2**60], "shape [1152921504606846976] has 1152921504606846976 elements, data has 4"),
        ([1] * 65, "shape of input 'x' has 65 dimensions; expected at most 64"),
        ([2**62] * 200_000, "shape of input 'x' has 200000 dimensions"),
        ([10**4000], "causes total element count to exceed maximum size"),
    ],
)
def test_huge_shapes(shape, said):
    refused(request(tensor(shape=shape)), said)
    binary = request(tensor(None, shape, parameters={"binary_data_size": 16}))
    with pytest.raises(BadRequest):
        call(binary + b"x" * 16, str(len(binary)).encode())


@pytest.mark.parametrize("depth", [101, 250, 5_000, 250_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize(
    "where", ["data", "zz", "parameters", "a-parameter", "inputs", "outputs", "shape", "name", "top"]
)
def test_too_deep(depth, opening, where):
    nested = opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * depth
    body = {
        "data": request(tensor("@")), "zz": request(tensor(), zz="@"), "parameters": request(tensor(), parameters="@"),
        "a-parameter": request(tensor(), parameters={"a": "@"}), "inputs": b'{"inputs":"@"}',
        "outputs": request(tensor(), outputs="@"), "shape": request(tensor(shape="@")), "top": b'"@"',
        "name": request(tensor(name="@")),
    }[where]  # fmt: skip
    refused(body.replace(b'"@"', nested.encode()), "JSON nesting depth exceeds maximum allowed limit (100)")


def test_brackets_in_strings_are_not_nesting():
    text = "[{" * 500 + '\\"[' + "\\"
    call(request(tensor(), id=text, zz={"b": [text, '"' * 300 + "[" * 300]}))
    refused(request(tensor(), id="]" * 500, zz="@").replace(b'"@"', b"[" * 101 + b"]" * 101), "JSON nesting depth")
    assert call(request(tensor([[1.0]] * 4000, [4000])))[0].inputs["x"].array.shape == (4000,)
    call(request(tensor(), zz="@").replace(b'"@"', b"[" * 99 + b"]" * 99))


def test_encode_of_an_empty_answer_is_plain_json():
    described, data = encode(np.empty((0, 4), np.float32), "FP32", binary=True)
    assert described["parameters"] == {"binary_data_size": 0}
    assert data == b""
