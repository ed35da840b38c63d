"""gzip and deflate (the zlib format) of whole bodies, with a cap on what a body may grow to."""

from __future__ import annotations

import zlib

from app.http.errors import BadRequest, BodyTooLarge

__all__ = ["choose", "compress", "decompress"]

_WINDOW = {"gzip": 31, "deflate": 15}
_MAX_MEMBERS = 4096
_PIECE_BYTES = 65536
_LEVEL = 1  # tensors hardly shrink; more effort costs time and gains little


def choose(accept: bytes) -> str | None:
    """The coding of an answer for an Accept-Encoding header, or None for none; the client's order decides ties."""
    best, best_quality = None, 0.0
    for item in accept.decode("latin-1").lower().split(","):
        coding, _, parameters = item.partition(";")
        name = {"*": "gzip"}.get(coding.strip(), coding.strip())
        quality = _quality(parameters)
        if name in _WINDOW and quality > best_quality:
            best, best_quality = name, quality
    return best


def _quality(parameters: str) -> float:
    key, _, value = parameters.strip().partition("=")
    if key.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def compress(body: bytes, coding: str) -> bytes:
    """Compress a body with `gzip` or `deflate`."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return packer.compress(body) + packer.flush()


def decompress(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """The decompressed body. Never makes more than `limit_bytes` of it: BodyTooLarge. BadRequest where it is broken."""
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW:
        raise BadRequest(f"unsupported Content-Encoding '{coding}'; expected gzip, deflate or identity")
    parts: list[bytes] = []
    left, offset, members = limit_bytes, 0, 0
    unpacker = None
    try:
        while offset < len(body):  # piecewise, since zlib copies what it leaves over of its input
            if unpacker is None:  # gzip allows several members, one after another
                unpacker, members = zlib.decompressobj(_WINDOW[coding]), members + 1
            piece = body[offset : offset + _PIECE_BYTES]
            part = unpacker.decompress(piece, left + 1)
            left -= len(part)
            if left < 0:
                raise BodyTooLarge(
                    f"the decompressed body has more than {limit_bytes} bytes; see setting max_body_bytes"
                )
            parts.append(part)
            offset += len(piece) - len(unpacker.unused_data)
            if unpacker.eof:
                unpacker = None
            if members > _MAX_MEMBERS:
                raise BadRequest(f"the {coding} body has more than {_MAX_MEMBERS} members")
    except zlib.error as error:
        raise BadRequest(f"the body is not {coding}: {error}") from error
    if unpacker is not None:
        raise BadRequest(f"the {coding} body is incomplete")
    return b"".join(parts)
