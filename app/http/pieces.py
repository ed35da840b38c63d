"""Long JSON lists of numbers, read in pieces: a thread that reads one at once keeps the interpreter from the loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

__all__ = ["PIECE_BYTES", "Buffer", "read_numbers"]

Buffer = bytes | bytearray | memoryview
PIECE_BYTES = 65536
"""Read in about a millisecond."""
_COMMA = re.compile(b",")
_BRACKETS = b"[]"
_BLANKS = b" \t\r\n"
_NO_FRAME = bytes(set(range(256)) - set(b"[],"))


def read_numbers(
    data: memoryview, depth: int, read: Callable[[bytes], np.ndarray], pause: Callable[[], None]
) -> np.ndarray:
    """All numbers of a list that nests `depth` deep, flat. `data` must be JSON: only what it means is looked at.

    `read` makes an array of a piece, `[number, ...]`, or raises; `pause` is called before each. ValueError where lists
    are ragged, or a piece is wrong.
    """
    parts: list[np.ndarray] = []
    frame: list[bytes] = []
    for start, piece in _pieces(data):
        pause()
        if depth > 1:
            frame.append(piece.translate(None, _NO_FRAME))
            inside = piece.translate(None, _BRACKETS)
        else:  # all but the outermost brackets stay, for `read` to refuse
            inside = _without_ends(piece, first=start == 0, last=start + len(piece) == len(data))
        try:
            parts.append(read(b"[%s]" % inside))
        except (msgspec.DecodeError, ValueError, OverflowError, TypeError) as error:
            raise ValueError(f"{error} (of the {len(piece)} bytes from byte {start} on)") from error
    if depth > 1 and not _is_regular(b",".join(frame), depth):
        raise ValueError("the lists are ragged")
    return np.concatenate(parts)


def _without_ends(piece: bytes, *, first: bool, last: bool) -> bytes:
    if first:
        piece = piece.lstrip(_BLANKS)[1:]
    return piece.rstrip(_BLANKS)[:-1] if last else piece


def _pieces(data: memoryview) -> Iterator[tuple[int, bytes]]:
    """Parts between commas, and where they begin. Without its brackets, each is a list's inside: numbers have none."""
    start = 0
    while start < len(data):
        comma = _COMMA.search(data, start + PIECE_BYTES)
        end = len(data) if comma is None else comma.start()
        yield start, bytes(data[start:end])
        start = end + 1


def _is_regular(frame: bytes, depth: int) -> bool:
    """Whether brackets and commas are those of lists that are equally long at each level.

    From the innermost level outwards: the first list of a level ends where that many brackets close for the first
    time; a regular one is its first member repeated.
    """
    member = b""
    for level in range(1, depth + 1):
        start, closing = depth - level, b"]" * level
        end = frame.find(closing, start) + level
        count, rest = divmod(end - start - 1, len(member) + 1)
        if end < level or rest:
            return False
        expected = b"[%s]" % ((member + b",") * count)[:-1]
        if frame[start:end] != expected:
            return False
        member = expected
    return member == frame
