"""Whole responses: what an inference call is answered with, and how that is written on a connection."""

from __future__ import annotations

import logging
from typing import NamedTuple

from app.http.errors import CONTINUE, INTERNAL, REASONS, body_of, headers_of, message_of, status_of

__all__ = ["BINARY", "JSON", "SEND_BODY", "Answer", "error_answer", "refusal", "wire_parts"]

log = logging.getLogger(__name__)
JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
_STATUS_LINE = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}
SEND_BODY = _STATUS_LINE[CONTINUE] + b"\r\n"
"""The whole of an interim response: the client may send its body (Expect: 100-continue)."""
_JOIN_BELOW_BYTES = 65536


class Answer(NamedTuple):
    """A whole response; Content-Length is the writer's business."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def error_answer(error: BaseException, request_id: bytes | None = None) -> Answer:
    """The answer that an error becomes."""
    headers = [JSON, *((name.encode(), value.encode()) for name, value in headers_of(error).items())]
    if request_id is not None:
        headers.append((b"x-request-id", request_id))
    return Answer(status_of(error), headers, body_of(message_of(error)))


def refusal(error: BaseException, request_id: bytes) -> Answer:
    """The same for a call; the log tells of those that are the server's fault."""
    answer = error_answer(error, request_id)
    if answer.status >= INTERNAL:
        fields = {"request_id": request_id.decode("latin-1"), "status": answer.status}
        log.warning("request answered %d: %s", answer.status, message_of(error), extra=fields)
    return answer


def wire_parts(answer: Answer, *, close: bool) -> list[bytes]:
    """The bytes of a response: one part, or two where joining would copy a large body once more."""
    status, headers, body = answer
    lines = [_STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers]]
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"content-length: %d\r\n\r\n" % len(body))
    if len(body) < _JOIN_BELOW_BYTES:
        lines.append(body)
        return [b"".join(lines)]
    return [b"".join(lines), body]
