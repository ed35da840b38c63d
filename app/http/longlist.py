"""The one long list of numbers of a large JSON request, taken out of it before the rest is parsed.

The parser would skip it first and read it again afterwards, and all that is looked for in JSON (keys, depth) would be
looked for in it, too.
"""

from __future__ import annotations

import re

from app.http.bodies import Body

__all__ = ["is_only_data", "take_long_list"]

_LEAST_BYTES = 65536
_MOST_AROUND_BYTES = 65536
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\Z')
_NOT_FLAT = b'[{"NI'
"""In a list: what makes it another than one of numbers, or NaN and Infinity, which are no JSON."""


def is_only_data(before: bytes, behind: bytes) -> bool:
    """Whether a list between these is the value of the only key "data": then any other list of numbers may stand there.

    Without backslashes a name can be written in one way only, and no string holds a quote.
    """
    around = before + behind
    return b"\\" not in around and around.count(b'"data"') == 1 and _DATA.search(before) is not None


def take_long_list(document: Body) -> tuple[bytes, memoryview] | None:
    """The document with an empty list in the place of a long flat one, and that one; None where there is none."""
    if len(document) < _LEAST_BYTES:
        return None
    start = document.find(b"[", document.find(b'"data"') + 1)
    end = document.find(b"]", start) + 1
    around = len(document) - (end - start)
    if start < 0 or end - start < _LEAST_BYTES or around > _MOST_AROUND_BYTES:
        return None
    before, behind = bytes(document[:start]), bytes(document[end:])
    if not is_only_data(before, behind) or any(document.find(mark, start + 1, end) >= 0 for mark in _NOT_FLAT):
        return None
    return b"%b[]%b" % (before, behind), memoryview(document)[start:end]
