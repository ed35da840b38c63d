"""A request's body as it arrives, part by part."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Body", "add_part", "announced_bytes", "whole"]

Body = bytes | bytearray
_MANY = 16
"""Some hundred KiB of what a socket gives at once, or a body in tiny chunks: each part is an object of its own."""


def announced_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Content-Length, or 0 where there is none."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def add_part(parts: list[Body], part: bytes) -> None:
    """Add a part. Many are joined as they come: at the end, that would hold up the loop, and hold the body twice."""
    if len(parts) > _MANY:
        parts[:] = [bytearray().join(parts)]
    if parts and isinstance(parts[0], bytearray):
        parts[0] += part
    else:
        parts.append(part)


def whole(parts: list[Body]) -> Body:
    """All parts as one."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
