"""Receive a multipart upload straight onto the disk: a gigabyte passes through without staying in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.http.errors import BadRequest, BodyTooLarge

__all__ = ["Received", "receive"]

_MAX_HEADER_BYTES = 4096


class Received:
    """One part of the upload. `text` is its bytes where they were not written to a file."""

    def __init__(self, file_name: str) -> None:
        self.file_name, self.size_bytes, self.text = file_name, 0, b""
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def take(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._hash.update(data)


async def receive(
    content_type: str, chunks: AsyncIterator[bytes], files: Mapping[str, Path], texts: Mapping[str, int], max_bytes: int
) -> dict[str, Received]:
    """Write the parts named in `files` to their paths, and keep those in `texts` (names to most bytes); what came.

    Raises BadRequest for anything else, BodyTooLarge over `max_bytes`. Disk work happens in a thread.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadRequest("expected a body of Content-Type multipart/form-data, with a boundary")
    parts = _Parts(files, texts)
    size = 0
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLarge(f"the upload has more than {max_bytes} bytes; see setting max_upload_bytes")
            await asyncio.to_thread(parser.write, chunk)
        await asyncio.to_thread(parser.finalize)
    except FormParserError as error:
        raise BadRequest(f"the multipart body cannot be read: {error}") from error
    finally:
        parts.close()
    if not parts.ended:
        raise BadRequest("the multipart body ends before its last boundary")
    return parts.received


class _Parts:
    """The parser's callbacks. They raise BadRequest, which passes through the parser."""

    def __init__(self, files: Mapping[str, Path], texts: Mapping[str, int]) -> None:
        self._files, self._texts = files, texts
        self.received: dict[str, Received] = {}
        self.ended = False
        self._file: BinaryIO | None = None
        self._part: Received | None = None
        self._name = ""
        self._field, self._value = b"", b""
        self._disposition = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._take_field,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._take_data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._part = None

    def _begin(self) -> None:
        self._disposition = b""

    def _take_field(self, data: bytes, start: int, end: int) -> None:
        self._field = _bounded(self._field + data[start:end])

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _bounded(self._value + data[start:end])

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._files and name not in self._texts:
            known = ", ".join([*self._files, *self._texts])
            raise BadRequest(f"part '{name[:100]}' is not known; expected {known}")
        if name in self.received:
            raise BadRequest(f"part '{name}' came twice")
        # the sender's file name is shown, never used as a path
        file_name = options.get(b"filename", b"").decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2][:200]
        self._part = self.received[name] = Received(file_name)
        if name in self._files:
            self._file = self._files[name].open("wb")
        self._name = name

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        piece = data[start:end]
        self._part.take(piece)
        if self._file is not None:
            self._file.write(piece)
            return
        if self._part.size_bytes > self._texts[self._name]:
            raise BadRequest(f"part '{self._name}' has more than {self._texts[self._name]} bytes")
        self._part.text += piece

    def _end(self) -> None:
        self.ended = True


def _bounded(data: bytes) -> bytes:
    if len(data) > _MAX_HEADER_BYTES:
        raise BadRequest(f"a part's header has more than {_MAX_HEADER_BYTES} bytes")
    return data
