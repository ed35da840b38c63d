"""One suite for all faces of the infer handler: its own protocol, ASGI on a socket, ASGI in-process."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest

from tests.hostile.wire import binary_body, json_body

BODY_CAP = 300_000

X = np.arange(16, dtype="<f4")
GOLDEN_HEAD = (
    b'{"id":"","inputs":[{"name":"X","datatype":"FP32","shape":[1,16],"parameters":{"binary_data_size":64}}],'
    b'"outputs":[{"name":"Y","parameters":{"binary_data":true}}]}'
)
GOLDEN_REPLY = (
    b'{"model_name":"m","model_version":"1","outputs":[{"name":"Y","shape":[1,16],"datatype":"FP32",'
    b'"parameters":{"binary_data_size":64}}]}'
)


def infer(face: Any, body: bytes, headers: dict[str, str] | None = None, path: str = "/v2/models/m/infer") -> Any:
    return face("POST", path, body, headers)


def test_golden_exchange_is_byte_for_byte(face):
    assert len(GOLDEN_HEAD) == 162
    assert len(GOLDEN_REPLY) == 133
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "162"}
    reply = infer(face, GOLDEN_HEAD + X.tobytes(), headers)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["inference-header-content-length"] == "133"
    assert reply.headers["content-length"] == "197"
    assert reply.body == GOLDEN_REPLY + (2 * X).tobytes()


def test_json_both_ways_has_no_header_length(face):
    reply = infer(face, json_body(1.5, rows=2, id="a1"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in reply.headers
    assert reply.json() == {
        "id": "a1", "model_name": "m", "model_version": "1",
        "outputs": [{"name": "Y", "shape": [2, 16], "datatype": "FP32", "data": [3.0] * 32}],
    }  # fmt: skip


def test_header_length_of_pure_json_is_the_whole_body(face):
    body = json_body()
    assert infer(face, body, {"Inference-Header-Content-Length": str(len(body))}).status == 200


def test_mixed_binary_and_json_inputs_follow_the_order_of_the_json(face):
    a, b = np.arange(16, dtype="<i4"), np.full(16, 100, "<i4")
    tensors = [
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "parameters": {"binary_data_size": 64}},
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16], "data": a.tolist()},
    ]
    outputs = [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}]
    head = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = infer(face, head + b.tobytes(), headers, "/v2/models/add_sub/infer")
    size = int(reply.headers["inference-header-content-length"])
    document = json.loads(reply.body[:size])
    by_name = {output["name"]: output for output in document["outputs"]}
    assert by_name["OUTPUT0"]["data"] == (a + b).tolist()
    assert by_name["OUTPUT1"]["parameters"] == {"binary_data_size": 64}
    assert reply.body[size:] == (a - b).tobytes()


def test_raw_body(face):
    reply = infer(face, X.tobytes(), {"Inference-Header-Content-Length": "0"})
    size = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:size])["outputs"][0]["shape"] == [1, 16]
    assert reply.body[size:] == (2 * X).tobytes()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("add_sub", "must only have 1 input (found 2)"),
        ("planes", "more than one variable-sized dimension"),
        ("m", "Expected 64, got 5"),
    ],
)
def test_raw_body_that_does_not_fit(face, model, said):
    reply = infer(face, b"12345", {"Inference-Header-Content-Length": "0"}, f"/v2/models/{model}/infer")
    assert reply.status == 400
    assert said in reply.error


def test_classification(face):
    body = json_body(1.0, outputs=[{"name": "Y", "parameters": {"classification": 3}}])
    output = infer(face, body).json()["outputs"][0]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [1, 3]
    assert output["data"] == ["2.000000:0", "2.000000:1", "2.000000:2"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(face, coding):
    body, header = binary_body(X[None])
    pack, unpack = (gzip.compress, gzip.decompress) if coding == "gzip" else (zlib.compress, zlib.decompress)
    name, _, length = header.partition(": ")  # the JSON's length before compression
    reply = infer(face, pack(body), {"Content-Encoding": coding, "Accept-Encoding": coding, name: length})
    assert reply.status == 200
    assert reply.headers["content-encoding"] == coding
    assert int(reply.headers["content-length"]) == len(reply.body)
    plain = unpack(reply.body)
    assert plain[int(reply.headers["inference-header-content-length"]) :] == (2 * X).tobytes()


@pytest.mark.parametrize(
    ("accept", "coding"),
    [("", None), ("identity", None), ("br", None), ("deflate, gzip", "deflate"), ("gzip;q=0", None),
     ("gzip;q=0.5, deflate;q=0.8", "deflate"), ("*", "gzip"), ("gzip;q=x", None)],
)  # fmt: skip
def test_accept_encoding(face, accept, coding):
    assert infer(face, json_body(), {"Accept-Encoding": accept}).headers.get("content-encoding") == coding


BODY = json_body()


@pytest.mark.parametrize(
    ("coding", "body", "said"),
    [
        ("gzip", b"not gzip at all", "the body is not gzip"),
        ("deflate", b"not deflate at all", "the body is not deflate"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-9], "incomplete"),
        ("deflate", zlib.compress(BODY)[:-5], "incomplete"),
        ("gzip", gzip.compress(BODY, mtime=0)[:4], "incomplete"),
        ("gzip", gzip.compress(BODY, mtime=0) + b"garbage", "the body is not gzip"),
        ("br", BODY, "unsupported Content-Encoding 'br'; expected gzip, deflate or identity"),
        ("gzip, deflate", BODY, "unsupported Content-Encoding"),
        ("gzip", gzip.compress(b"") * 5000, "more than 4096 members"),
        ("gzip", b"", "JSON"),
    ],
)
def test_broken_compression(face, coding, body, said):
    reply = infer(face, body, {"Content-Encoding": coding})
    assert reply.status == 400
    assert said in reply.error


def test_several_gzip_members_are_one_body(face):
    assert infer(face, gzip.compress(BODY[:40]) + gzip.compress(BODY[40:]), {"Content-Encoding": "GZIP"}).status == 200
    assert infer(face, BODY, {"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_bomb_is_too_large(face, pack):
    coding = "gzip" if pack is gzip.compress else "deflate"
    reply = infer(face, pack(b" " * 50_000_000), {"Content-Encoding": coding})
    assert reply.status == 413
    assert str(BODY_CAP) in reply.error
    assert "max_body_bytes" in reply.error


def test_body_over_the_cap(face):
    reply = infer(face, b" " * (BODY_CAP + 1))
    assert reply.status == 413
    assert "max_body_bytes" in reply.error
    assert infer(face, json_body() + b" " * (BODY_CAP - len(json_body()))).status == 200


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v2/models/nope/infer", 404, "Request for unknown model: 'nope' is not found"),
        ("/v2/models/m/versions/9/infer", 404, "Request for unknown model: 'm' version 9 is not found"),
        ("/v2/models/m/versions/x/infer", 404, ""),
        ("/v2/models/m/versions/99999999999999999999/infer", 404, ""),
        ("/v2/models/m/versions/-1/infer", 404, ""),
        ("/v2/models/m%00/infer", 404, ""),
        ("/v2/models/%ff/infer", 404, ""),
        ("/v2/models//infer", 404, "Not Found"),
        ("/v2/models/m/infer/", 404, "Not Found"),
        ("/v2/models/a/b/infer", 404, "Not Found"),
        ("/v2/models/a%2Fb/infer", 404, ""),
    ],
)
def test_unknown_models_and_paths(face, path, status, said):
    reply = infer(face, json_body(), path=path)
    assert reply.status == status
    assert said in reply.error


@pytest.mark.parametrize("path", ["/v2/models/%6D/infer", "/v2/models/m/%69nfer", "/v2/models/m/versions/1/infer?a=b"])
def test_other_spellings_of_a_path(face, path):
    assert infer(face, json_body(), path=path).status == 200


def test_request_id_is_given_back(face):
    assert infer(face, json_body(), {"X-Request-Id": "my-id"}).headers["x-request-id"] == "my-id"
    assert infer(face, b"{", {"X-Request-Id": "my-id"}).headers["x-request-id"] == "my-id"
    first, second = (infer(face, json_body()).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_more_rows_than_a_batch_takes(face):
    reply = infer(face, json_body(1.0, rows=33))
    assert reply.status == 400
    assert "inference request batch-size must be <= 32 for 'm', got 33" in reply.error
