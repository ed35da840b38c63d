"""gzip and deflate (the zlib format) of whole bodies, with a cap on what a body may grow to."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Iterator

from app.http.bodies import Body
from app.http.errors import BadRequest, BodyTooLarge
from app.http.workers import INLINE_BYTES

__all__ = ["Unpacked", "choose", "compress", "counted", "decompress", "is_coded", "unpacked"]

_WINDOW = {"gzip": 31, "deflate": 15}
_MAX_MEMBERS = 4096
_PIECE_BYTES = 65536
_FIRST_PIECE_BYTES = 1024  # of a member: many tiny ones must not cost a large copy each
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


def is_coded(coding: str) -> bool:
    """Whether a Content-Encoding (in lower case) says that the body was changed at all."""
    return coding not in ("", "identity")


def unpacked(body: Body, coding: str, limit_bytes: int) -> Iterator[bytes]:
    """The decompressed body in parts of at most 64 KiB, so that whoever takes them can count, stop, or change threads.

    Never makes more than `limit_bytes` of it: BodyTooLarge. BadRequest where it is broken, when its turn comes.
    """
    if coding not in _WINDOW:
        raise BadRequest(f"unsupported Content-Encoding '{coding}'; expected gzip, deflate or identity")
    return _parts(body, coding, limit_bytes)


def _parts(body: Body, coding: str, limit_bytes: int) -> Iterator[bytes]:
    made_bytes = offset = members = 0
    while offset < len(body):  # gzip allows several members, one after another
        members += 1
        if members > _MAX_MEMBERS:
            raise BadRequest(f"the {coding} body has more than {_MAX_MEMBERS} members")
        unpacker, size = zlib.decompressobj(_WINDOW[coding]), _FIRST_PIECE_BYTES
        while not unpacker.eof:
            piece = body[offset : offset + size]  # piecewise, since zlib copies what it leaves over
            size = min(2 * size, _PIECE_BYTES)
            try:
                part = unpacker.decompress(piece, _PIECE_BYTES)
            except zlib.error as error:
                raise BadRequest(f"the body is not {coding}: {error}") from error
            offset += len(piece) - len(unpacker.unused_data) - len(unpacker.unconsumed_tail)
            if not part and offset >= len(body) and not unpacker.eof:
                raise BadRequest(f"the {coding} body is incomplete")
            made_bytes += len(part)
            if made_bytes > limit_bytes:
                raise BodyTooLarge(
                    f"the decompressed body has more than {limit_bytes} bytes; see setting max_body_bytes"
                )
            if part:
                yield part


def counted(parts: Iterator[bytes], take: Callable[[int], None]) -> Iterator[bytes]:
    """The same parts; `take` is told of each one's size before it is given."""
    for part in parts:
        take(len(part))
        yield part


async def decompress(body: bytes, coding: str, limit_bytes: int, take: Callable[[int], None]) -> bytes:
    """The decompressed body, made in a thread where it is large. Raises as `unpacked` does.

    `take` is told of every part's size, from that thread, too; what it raises ends the work.
    """
    if not is_coded(coding):
        return body
    parts, made = counted(unpacked(body, coding, limit_bytes), take), Unpacked()
    if len(body) <= INLINE_BYTES and made.fill(parts, INLINE_BYTES):
        return made.body()
    return await asyncio.to_thread(made.finish, parts)


class Unpacked:
    """A body as it grows."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def fill(self, parts: Iterator[bytes], most_bytes: float = math.inf) -> bool:
        """Take parts until there are no more (True), or until `most_bytes` are reached (False)."""
        for part in parts:
            self._parts.append(part)
            most_bytes -= len(part)
            if most_bytes < 0:
                return False
        return True

    def finish(self, parts: Iterator[bytes]) -> bytes:
        """Take all parts that are left; the whole body."""
        self.fill(parts)
        return self.body()

    def body(self) -> bytes:
        """What has been taken, as one."""
        return b"".join(self._parts)
