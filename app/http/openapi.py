"""The inference route in the OpenAPI page: its schema is generated from the very types that are decoded."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.http.errors import OK, UNPROCESSABLE, BadRequest, BodyTooLarge, status_of
from app.http.wire import InferRequest, InferResponse, RequestInput, ResponseOutput
from app.serving.errors import InferenceFailed, Rejected, UnknownModel

__all__ = ["describe_inference"]

_REF = "#/components/schemas/{name}"
_Data = Annotated[list[Any], msgspec.Meta(description="Flat or nested list, row-major.")]
"""What `data` holds; the types say only how it is decoded: as bytes, by the tensor's datatype."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS: dict[type[Exception], str] = {
    BadRequest: "The request is wrong; the body says what was expected.",
    UnknownModel: "No such model or version.",
    BodyTooLarge: "The body is larger than max_body_bytes.",
    InferenceFailed: "The engine failed on this batch.",
    Rejected: "The queue is full, the timeout expired, or the server is stopping.",
}


def describe_inference(app: FastAPI) -> None:
    """Make `app.openapi()` include the inference calls, which FastAPI does not route."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            (request, response), components = msgspec.json.schema_components(_shown_types(), ref_template=_REF)
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
                document["paths"][path] = {"post": _operation(path, request, response)}
            _without_422(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _without_422(document: dict[str, Any]) -> None:
    """FastAPI describes its own answer to a bad path parameter; ours is 404 with the error body, as everywhere."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop(str(UNPROCESSABLE), None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)


def _shown_types() -> list[type[msgspec.Struct]]:
    """The types of a call and of its answer, with `data` as the client sees it."""
    taken, given = _with(RequestInput, data=_Data), _with(ResponseOutput, data=_Data)
    return [_with(InferRequest, inputs=list[taken]), _with(InferResponse, outputs=list[given])]  # type: ignore[valid-type]


def _with(struct: type[msgspec.Struct], **types: Any) -> type[msgspec.Struct]:
    """The same type, but for the types of some fields."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(struct):
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = msgspec.field(default_factory=field.default_factory)
        elif field.name in types and default is not msgspec.NODEFAULT:
            default = msgspec.field(default_factory=list)
        kind = types.get(field.name, field.type)
        fields.append((field.name, kind) if default is msgspec.NODEFAULT else (field.name, kind, default))
    return msgspec.defstruct(struct.__name__, fields, kw_only=True, namespace={"__doc__": inspect.getdoc(struct)})


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
            str(OK): {
                "description": "The outputs.",
                "content": {"application/json": {"schema": response}, "application/octet-stream": _BINARY},
            },
            **{str(status_of(kind)): {"description": text, "content": error} for kind, text in _ERRORS.items()},
        },
    }
