"""The inference route in the OpenAPI page: its schema is generated from the very types that are decoded."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.http.wire import InferRequest, InferResponse

__all__ = ["describe_inference"]

_REF = "#/components/schemas/{name}"
_DATA = {"type": "array", "items": {}, "description": "Flat or nested list, row-major."}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CODES = {
    "400": "The request is wrong; the body says what was expected.",
    "404": "No such model or version.",
    "413": "The body is larger than max_body_bytes.",
    "500": "The engine failed on this batch.",
    "503": "The queue is full, the timeout expired, or the server is stopping.",
}


def describe_inference(app: FastAPI) -> None:
    """Make `app.openapi()` include the inference calls, which FastAPI does not route."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            (request, response), components = msgspec.json.schema_components(
                [InferRequest, InferResponse], ref_template=_REF
            )
            for component in components.values():
                if "data" in component.get("properties", {}):
                    component["properties"]["data"] = _DATA
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
                document["paths"][path] = {"post": _operation(path, request, response)}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(path: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    schemas: dict[str, Any] = {"model": {"type": "string"}, "version": {"type": "string", "pattern": "^[0-9]{1,18}$"}}
    names = [name for name in schemas if "{" + name + "}" in path]
    header = {
        "name": "Inference-Header-Content-Length", "in": "header", "required": False,
        "description": "Length of the JSON part; the binary tensors follow it. 0: the body is the only input's bytes.",
        "schema": {"type": "integer", "minimum": 0},
    }  # fmt: skip
    error = {"application/json": {"schema": {"$ref": _REF.format(name="ErrorBody")}}}
    return {
        "tags": ["inference"],
        "summary": "Infer",
        "description": "One inference call; rows of several calls share a batch where that was proven right.",
        "operationId": "infer_version" if "version" in names else "infer",
        "parameters": [{"name": n, "in": "path", "required": True, "schema": schemas[n]} for n in names] + [header],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request}, "application/octet-stream": _BINARY},
        },
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {"application/json": {"schema": response}, "application/octet-stream": _BINARY},
            },
            **{code: {"description": text, "content": error} for code, text in _CODES.items()},
        },
    }
