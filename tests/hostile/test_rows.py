"""Every row of the table of edge cases: the answer that is expected, and a server that goes on serving."""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from tests.hostile.conftest import CAP
from tests.hostile.wire import Client, binary_body, json_body, post, short_post, wait_in_flight
from tests.support.servers import Server

X = np.ones((1, 16), "<f4")


def infer(client: Client, body: bytes, *headers: str, model: str = "m") -> Any:
    return client.ask(post(model, body, headers))


def with_tensor(**keys: Any) -> bytes:
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16, **keys}
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}).encode()


def is_400(reply: Any, *said: str) -> None:
    assert reply.status == 400, reply
    for text in said:
        assert text in reply.error
    for secret in ("Traceback", "/app/", ".py", "site-packages", "wire-"):
        assert secret not in reply.error


@pytest.mark.parametrize("length", ["99999999999", "9" * 40, "-1", "text", "5000", "1e3", "", "2147483648"])
def test_header_length_out_of_range(client, length):
    body, _ = binary_body(X)
    is_400(infer(client, body, f"Inference-Header-Content-Length: {length}"), f"should be in range (0, {len(body)})")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([2**62, 4], "causes total element count to exceed maximum size of"),
        ([2**61], "byte size overflow for input"),
        ([2**32] * 60, "causes total element count to exceed maximum size of"),
        ([1] * 1000, "1000 dimensions"),
        ([10**300], "causes total element count to exceed maximum size of"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_shape_overflow(client, shape, said, binary):
    if binary:
        body = with_tensor(shape=shape, data=..., parameters={"binary_data_size": 64})
        is_400(infer(client, body + X.tobytes(), f"Inference-Header-Content-Length: {len(body)}"), said)
    else:
        is_400(infer(client, with_tensor(shape=shape)), said)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_body_over_the_cap(client, coding):
    body = json_body() + b" " * CAP
    packed = gzip.compress(body) if coding == "gzip" else body
    reply = infer(client, packed, f"Content-Encoding: {coding}")
    assert reply.status == 413
    assert f"more than {CAP} bytes; see setting max_body_bytes" in reply.error


@pytest.mark.parametrize("depth", [101, 250_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_json(client, depth, opening):
    nested = opening * (depth if depth == 101 else 900_000 // len(opening))
    for body in (with_tensor(data=["@"]), json_body(zz="@"), json_body(parameters={"a": "@"}), b'"@"'):
        said = "JSON nesting depth exceeds maximum allowed limit (100)"
        is_400(infer(client, body.replace(b'"@"', nested)), said)


@pytest.mark.parametrize("target", ["/v2/repository/index", "/v2/repository/models/m/load", "/v2/logging"])
def test_deep_json_to_the_control_plane(client, target):
    key = {"index": "ready", "load": "parameters", "logging": "log_info"}[target.rsplit("/", 1)[1]]
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        nested = b'{"%s":' % key.encode() + opening * 130_000 + b"1" + closing * 130_000 + b"}"
        is_400(client.ask(post(target, nested)))


def test_deep_config_override(client):
    body = json.dumps({"parameters": {"config": "[" * 100_000}}).encode()
    is_400(client.ask(post("/v2/repository/models/m/load", body)))


def test_negative_dimension(client):
    is_400(infer(client, with_tensor(shape=[-1, 16])), "shape")
    is_400(infer(client, with_tensor(shape=[1, -16])), "shape")


def test_two_outputs_of_one_name(client):
    is_400(infer(client, json_body(outputs=[{"name": "Y"}, {"name": "Y"}])), "output 'Y' already exists in request")


def test_raw_bodies(client):
    raw = "Inference-Header-Content-Length: 0"
    texts = [infer(client, X.tobytes(), raw, model=model) for model in ("add_sub", "planes")]
    is_400(texts[0], "must only have 1 input (found 2)")
    is_400(texts[1], "more than one variable-sized dimension")
    is_400(infer(client, X.tobytes()[1:], raw), "Expected 64, got 63")
    assert infer(client, X.tobytes(), raw).status == 200


def test_second_request_to_a_queue_of_one(server: Server, client):
    with Client(server.port) as first:
        first.send(short_post("narrow"))
        wait_in_flight(server, "narrow", 1)
        reply = client.ask(short_post("narrow"))
        assert reply.status == 503
        assert "Exceeds maximum queue size" in reply.error
        assert int(reply.headers["retry-after"]) >= 1
        assert first.read().status == 200


def test_an_expired_request(server: Server, client):
    reply = client.ask(short_post("patient", parameters={"timeout": 50_000}))
    assert reply.status == 503
    assert "Request timeout expired" in reply.error
    assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize("name", ["..", "../x", "model/subdir", "model/", " ..", "a/../b", "..\\x", "/etc"])
def test_loading_outside_the_repository(client, name):
    reply = client.ask(post(f"/v2/repository/models/{quote(name, safe='')}/load", b"{}"))
    is_400(reply, "model name must not contain path traversal characters")


@pytest.mark.parametrize("name", ["...", "model..1", "nope", "-a", "a" * 129, "\u00e4", "a b", "%", "a\x00b"])
def test_loading_what_is_not_there(client, name):
    is_400(client.ask(post(f"/v2/repository/models/{quote(name, safe='')}/load", b"{}")))


@pytest.mark.parametrize("name", ["", "%20"])
def test_loading_nothing(client, name):
    reply = client.ask(post(f"/v2/repository/models/{name}/load", b"{}"))
    is_400(reply, "Model name cannot be empty")


@pytest.mark.parametrize("name", ["..", "../x", "model/subdir", "nope", " ", "a\x00b"])
def test_unloading_what_is_not_there(client, name):
    reply = client.ask(post(f"/v2/repository/models/{quote(name, safe='')}/unload", b"{}"))
    assert reply.status in (400, 404)
    assert "not found" in reply.error
    assert "traversal" not in reply.error


def test_a_repository_with_a_name(client):
    reply = client.ask(post("/v2/repository/mine/models/m/load", b"{}"))
    assert reply.status == 501
    assert "one repository, without a name" in reply.error


# -- texts that scripts match ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "model", "said"),
    [
        (json_body(), "add_sub", "expected 2 inputs but got 1 inputs for model 'add_sub'"),
        (with_tensor(shape=[16]), "m", "unexpected shape for input 'X' for model 'm'. Expected [-1,16], got [16]"),
        (with_tensor(shape=[2, 8]), "m", "unexpected shape for input 'X' for model 'm'. Expected [-1,16], got [2,8]"),
        (json_body(rows=33), "m", "inference request batch-size must be <= 32"),
        (with_tensor(name="Z"), "m", "unexpected inference input 'Z' for model 'm'; it takes 'X'"),
        (with_tensor(datatype="INT32", data=[1] * 16), "m", "data-type is 'INT32', but model 'm' expects 'FP32'"),
        (with_tensor(datatype="fp32"), "m", "unknown datatype 'fp32'; expected one of BOOL"),
        (json_body(outputs=[{"name": "Z"}]), "m", "unexpected inference output 'Z' for model 'm'; it gives 'Y'"),
        (with_tensor(shape=[0, 16], data=[]), "m", "Expected at least one element in every dimension, got [0,16]"),
        (b'{"inputs":[]}', "m", "expected 1 inputs but got 0 inputs for model 'm'"),
    ],
)
def test_texts(client, body, model, said):
    is_400(infer(client, body, model=model), said)


def test_binary_sizes(client):
    body, header = binary_body(X)
    text = "unexpected size for input 'X', expecting 4 additional bytes for model 'm'"
    is_400(infer(client, body[:-4], header), text)
    is_400(infer(client, body + b"1", header), "unexpected additional input data for model 'm'")


PATHS = ["/v2/models/m/versions/0/infer", "/v2/models/m/versions/00/infer", "/v2/models/stats/infer"]


@pytest.mark.parametrize("path", PATHS)
def test_unknown_versions(client, path):
    reply = client.ask(post(path, json_body()))
    assert reply.status == 404
    assert "not found" in reply.error


def test_header_values_do_not_reach_other_headers(client):
    assert client.ask(short_post("m", headers=["X-Request-Id: a\xe9\tb"])).headers["x-request-id"] == "a\xe9\tb"
