"""Exceptions to status numbers, the only place that maps them. Every body is `{"error": "..."}` and nothing else."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from app.serving import errors as serving
from engines.errors import BadRepository, EngineError

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "Forbidden",
    "HttpError",
    "NotAuthorized",
    "NotSupported",
    "body_of",
    "status_of",
    "too_large",
]


class HttpError(Exception):
    """Base of what only HTTP can get wrong."""


class BadRequest(HttpError):
    """The bytes are not a request of the protocol."""


class BodyTooLarge(HttpError):
    """The body exceeds the limit, on the wire or decompressed."""


class NotAuthorized(HttpError):
    """The admin token is missing."""


class Forbidden(HttpError):
    """The admin token is wrong."""


class NotSupported(HttpError):
    """The protocol knows it; this server does not do it."""


_STATUS: dict[type[Exception], HTTPStatus] = {
    BadRequest: HTTPStatus.BAD_REQUEST,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    NotAuthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotSupported: HTTPStatus.NOT_IMPLEMENTED,
    BadRepository: HTTPStatus.BAD_REQUEST,
    EngineError: HTTPStatus.BAD_REQUEST,
    serving.InvalidInput: HTTPStatus.BAD_REQUEST,
    serving.Cancelled: HTTPStatus.BAD_REQUEST,
    serving.UnknownModel: HTTPStatus.NOT_FOUND,
    serving.ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.Rejected: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.DeadlineExceeded: HTTPStatus.SERVICE_UNAVAILABLE,
}


def status_of(error: BaseException) -> int:
    """The status of an error, by its nearest listed base class; 500 for what is nobody's fault but ours."""
    for base in type(error).__mro__:
        if base in _STATUS:
            return int(_STATUS[base])
    return int(HTTPStatus.INTERNAL_SERVER_ERROR)


def body_of(message: str) -> bytes:
    """The error body of the protocol."""
    return msgspec.json.encode({"error": message})


def too_large(limit_bytes: int) -> BodyTooLarge:
    """The error for a body over the limit."""
    return BodyTooLarge(f"the request body has more than {limit_bytes} bytes; see setting max_body_bytes")
