"""Exceptions to status numbers, the only place that knows any. Every body is `{"error": "..."}` and nothing else."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from app.serving import errors as serving
from app.store.errors import StoreError
from engines.errors import BadRepository, EngineError

__all__ = [
    "CONTINUE",
    "INTERNAL",
    "METHOD_NOT_ALLOWED",
    "OK",
    "REASONS",
    "UNPROCESSABLE",
    "BadRequest",
    "BodyTooLarge",
    "Forbidden",
    "HttpError",
    "NotAuthorized",
    "NotFound",
    "NotSupported",
    "TooManyConnections",
    "body_of",
    "headers_of",
    "message_of",
    "status_of",
    "too_large",
]

CONTINUE = int(HTTPStatus.CONTINUE)
OK = int(HTTPStatus.OK)
ACCEPTED = int(HTTPStatus.ACCEPTED)
METHOD_NOT_ALLOWED = int(HTTPStatus.METHOD_NOT_ALLOWED)
UNPROCESSABLE = int(HTTPStatus.UNPROCESSABLE_ENTITY)
"""FastAPI's own for what it cannot validate; never sent here."""
INTERNAL = int(HTTPStatus.INTERNAL_SERVER_ERROR)
"""The least status that is the server's fault."""
REASONS = {int(status): status.phrase for status in HTTPStatus}
"""Status to reason phrase, for status lines."""


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


class NotFound(HttpError):
    """The protocol has no such path."""


class NotSupported(HttpError):
    """The protocol knows it; this server does not do it."""


class TooManyConnections(HttpError):
    """The limit of open connections is reached."""


_STATUS: dict[type[BaseException], HTTPStatus] = {
    BadRequest: HTTPStatus.BAD_REQUEST,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    NotAuthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    NotSupported: HTTPStatus.NOT_IMPLEMENTED,
    TooManyConnections: HTTPStatus.SERVICE_UNAVAILABLE,
    BadRepository: HTTPStatus.BAD_REQUEST,
    EngineError: HTTPStatus.BAD_REQUEST,
    StoreError: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.InvalidInput: HTTPStatus.BAD_REQUEST,
    serving.Cancelled: HTTPStatus.BAD_REQUEST,
    serving.UnknownModel: HTTPStatus.NOT_FOUND,
    serving.ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.Rejected: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.DeviceGone: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.DeadlineExceeded: HTTPStatus.SERVICE_UNAVAILABLE,
}


def status_of(error: BaseException | type[BaseException]) -> int:
    """The status of an error (or of a kind of errors), by its nearest listed base class.

    INTERNAL for what is nobody's fault but ours.
    """
    kind = error if isinstance(error, type) else type(error)
    for base in kind.__mro__:
        if base in _STATUS:
            return int(_STATUS[base])
    return INTERNAL


def message_of(error: BaseException) -> str:
    """What the client is told. What nobody expected says nothing of our insides."""
    known = isinstance(error, (HttpError, serving.ServingError, EngineError))
    return str(error) if known else "internal error; see the server's log"


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers that belong to an error's status: when to try again, or how to be let in."""
    status = status_of(error)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"retry-after": str(getattr(error, "retry_after_s", 1))}
    if status == HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    return {}


def body_of(message: str) -> bytes:
    """The error body of the protocol."""
    return msgspec.json.encode({"error": message})


def too_large(limit_bytes: int) -> BodyTooLarge:
    """The error for a body over the limit."""
    return BodyTooLarge(f"the request body has more than {limit_bytes} bytes; see setting max_body_bytes")
