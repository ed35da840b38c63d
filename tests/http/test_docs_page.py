"""`/openapi.json` and `/docs`: every route is there, every reference resolves, infer's schema is the decoder's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from app.http.wire import InferRequest, InferResponse, RequestInput, RequestOutput, ResponseOutput
from tests.support.servers import running

VERSIONED = ("", "/ready", "/config", "/stats", "/infer")
PATHS = {
    "/v2": "get", "/v2/health/live": "get", "/v2/health/ready": "get",
    "/v2/health/started": "get", "/v2/models/stats": "get", "/metrics": "get",
    "/v2/repository/index": "post", "/v2/repository/models/{model}/load": "post",
    "/v2/repository/models/{model}/unload": "post", "/v2/logging": "get",
    "/v2/repository/models/{model}/compile": "post", "/v2/builds": "get", "/v2/builds/{build}": "get",
    "/v2/builds/{build}/events": "get", "/v2/models/{model}/versions/{version}/report": "get",
    **{f"/v2/models/{{model}}{end}": "post" if end == "/infer" else "get" for end in VERSIONED},
    **{f"/v2/models/{{model}}/versions/{{version}}{end}": "post" if end == "/infer" else "get" for end in VERSIONED},
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("empty")) as server:
        yield server.url


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/openapi.json", timeout=30)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert {path: method for path, method in PATHS.items() if method not in document["paths"].get(path, {})} == {}
    assert set(document["paths"]) == set(PATHS)
    assert set(document["paths"]["/v2/logging"]) == {"get", "post"}


def test_every_operation_has_an_id_of_its_own_a_tag_and_words(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(operation["tags"] and operation["description"] for operation in operations)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    references = set(_references(document))
    assert references
    for reference in references:
        node = document
        assert reference.startswith("#/")
        for part in reference[2:].split("/"):
            assert part in node, reference
            node = node[part]


def test_every_error_is_described_as_the_error_body(document: dict[str, Any]) -> None:
    body = document["components"]["schemas"]["ErrorBody"]
    assert (list(body["properties"]), body["required"]) == (["error"], ["error"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            errors = {code: answer for code, answer in operation["responses"].items() if code >= "400"}
            assert "400" in errors, path
            assert "422" not in errors, path
            for answer in errors.values():
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


@pytest.mark.parametrize("struct", [InferRequest, InferResponse, RequestInput, RequestOutput, ResponseOutput])
def test_infers_schema_is_that_of_the_types_it_decodes(document: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    schema = document["components"]["schemas"][struct.__name__]
    fields = msgspec.structs.fields(struct)
    assert list(schema["properties"]) == [field.name for field in fields]
    assert schema["required"] == [field.name for field in fields if field.required]
    if "data" in schema["properties"]:
        assert schema["properties"]["data"]["type"] == "array"


def test_infer_is_described_with_bytes_and_json_both_ways(document: dict[str, Any]) -> None:
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        operation = document["paths"][path]["post"]
        request, answer = operation["requestBody"], operation["responses"]["200"]
        assert request["required"]
        for body, name in ((request, "InferRequest"), (answer, "InferResponse")):
            assert set(body["content"]) == {"application/json", "application/octet-stream"}
            assert body["content"]["application/json"]["schema"]["$ref"].endswith(f"/{name}")
        names = [parameter["name"] for parameter in operation["parameters"]]
        assert names == [*re.findall(r"{(\w+)}", path), "Inference-Header-Content-Length"]


def test_the_page_shows_that_document(url: str) -> None:
    answer = httpx.get(f"{url}/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in answer.text
