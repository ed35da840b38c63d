"""Model files that came with a load call, as base64 in parameters `file:<version>/model.onnx`."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from app.config import ModelConfig
from app.http.errors import BadRequest
from engines.repository import MODEL_FILE

__all__ = ["brought_files"]

_FILE_PARAMETER = re.compile(rf"file:([1-9][0-9]{{0,17}})/{re.escape(MODEL_FILE)}")
_PIECE_CHARS = 1_048_576  # a multiple of 4: each piece is base64 of its own


def brought_files(
    parameters: dict[str, Any], config: ModelConfig | None, take: Callable[[int], None] = lambda _: None
) -> dict[int, bytes]:
    """The files by version. Takes long for large ones: not for the event loop.

    `take` is told of the size of what is decoded; what it raises ends the work.
    """
    files: dict[int, bytes] = {}
    for key, value in parameters.items():
        if not key.startswith("file:"):
            continue
        named = _FILE_PARAMETER.fullmatch(key)
        if named is None:
            raise BadRequest(f"parameter '{key[:100]}' is not allowed; expected file:<version>/{MODEL_FILE}")
        if config is None:
            raise BadRequest(f"parameter '{key}' needs the parameter 'config' beside it")
        try:
            files[int(named[1])] = _decoded(value if isinstance(value, str) else "", take)
        except ValueError as error:
            raise BadRequest(f"parameter '{key}' is not base64: {error}") from error
    return files


def _decoded(text: str, take: Callable[[int], None]) -> bytes:
    """In pieces, since the decoder keeps the GIL: a thread that decodes all at once would hold up the loop.

    ValueError where it is not base64.
    """
    parts: list[bytes] = []
    for offset in range(0, len(text), _PIECE_CHARS):
        piece = text[offset : offset + _PIECE_CHARS]
        if piece.endswith("=") and offset + _PIECE_CHARS < len(text):
            raise ValueError("there is data after the padding")
        parts.append(base64.b64decode(piece, validate=True))
        take(len(parts[-1]))
    return b"".join(parts)
