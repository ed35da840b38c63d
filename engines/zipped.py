"""Open an npz that is not trusted: a zip of plain arrays, read in pieces. Runs no pickle, believes no stated size."""

from __future__ import annotations

import ast
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from engines.errors import ModelRefused
from engines.files import open_plain

__all__ = ["MAX_BYTES", "Member", "blocks", "members"]

MAX_BYTES = 2**31 - 1
"""Of the file, and of all arrays together, unpacked."""
MAX_ROW_BYTES = 2**28
_MAX_MEMBERS = 256
_MAX_DIRECTORY_BYTES = 2**18
_MAX_HEADER_BYTES = 4096
_MAX_DIMENSIONS = 16
_MAX_WHOLE_BYTES = 2**28
_BLOCK_BYTES = 2**22
_END = struct.Struct("<4s4H2LH")  # PKWARE's APPNOTE 4.3.16: end of central directory record
_ZIP64_LOCATOR_BYTES = 20
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError,
    KeyError,
)  # fmt: skip
_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|V2)")
"""Booleans, integers, floats, and bfloat16, which numpy writes as two bytes without meaning."""


class Member(NamedTuple):
    """One array of the file, by what its checked header says."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    by_columns: bool
    start: int
    """Bytes before the data."""
    entry: str


def members(path: Path) -> dict[str, Member]:
    """The arrays of an npz, without reading them. Raises ModelRefused with what is wrong with the file."""
    try:
        _check_directory(path)
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > MAX_BYTES:
                raise _refusal(path, f"it unpacks to {total} bytes; at most {MAX_BYTES} are read")
            found = [_member(path, archive, entry) for entry in entries]
    except _UNREADABLE as error:
        raise _refusal(path, _said(error)) from error
    names = [member.name for member in found]
    if len(set(names)) != len(names):
        raise _refusal(path, f"it has two arrays of one name among {sorted(names)}")
    return {member.name: member for member in found}


def blocks(path: Path, member: Member) -> Iterator[np.ndarray]:
    """The array in pieces of about 4 MiB along its first axis, in order, in the machine's byte order.

    Raises ModelRefused where the data end early or do not match their checksum.
    """
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive, archive.open(member.entry) as stream:
            _exactly(stream, member.start)
            yield from _rows(stream, member)
            if stream.read(1):  # also makes zipfile compare the checksum
                raise _refusal(path, f"{member.name!r} goes on behind its last element")
    except _UNREADABLE as error:
        raise _refusal(path, f"{member.name!r}: {_said(error)}") from error


def _rows(stream: IO[bytes], member: Member) -> Iterator[np.ndarray]:
    native = member.dtype.newbyteorder("=")
    if member.by_columns:
        data = _exactly(stream, math.prod(member.shape) * member.dtype.itemsize)
        yield np.frombuffer(data, member.dtype).reshape(member.shape, order="F").astype(native, order="C", copy=False)
        return
    row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, member.shape[0], step):
        count = min(step, member.shape[0] - start)
        block = np.frombuffer(_exactly(stream, count * row_bytes), member.dtype)
        yield block.reshape(count, *member.shape[1:]).astype(native, copy=False)


def _check_directory(path: Path) -> None:
    """Before `zipfile` reads the central directory: it makes an object of each entry, however many there are."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise _refusal(path, f"it has {size} bytes; at most {MAX_BYTES} are read")
        file.seek(max(0, size - _END.size - _ZIP64_LOCATOR_BYTES))
        tail = file.read()
    end = tail[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6") or end[-2:] != b"\0\0":
        raise _refusal(path, "it does not end as a zip file without a comment does: not an npz, or cut off")
    _, _, _, _, count, directory_bytes, _, _ = _END.unpack(end)
    if tail[: -_END.size].startswith(b"PK\6\7"):
        raise _refusal(path, f"it is a zip64 archive; expected at most {MAX_BYTES} bytes in a plain one")
    if count > _MAX_MEMBERS or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise _refusal(path, f"it lists {count} entries in {directory_bytes} bytes; at most {_MAX_MEMBERS} are read")


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    name = entry.filename.removesuffix(".npy")
    if name == entry.filename or not name:
        raise _refusal(path, f"it holds {entry.filename[:100]!r}; expected arrays alone, as numpy.savez writes them")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refusal(
            path, f"{name!r} is encrypted or packed in another way; expected numpy.savez or savez_compressed"
        )
    with archive.open(entry) as stream:
        header, start = _header(path, name, stream)
    dtype, shape, by_columns = _parsed(path, name, header)
    size = math.prod(shape) * dtype.itemsize
    if start + size != entry.file_size:
        raise _refusal(
            path, f"{name!r} has {entry.file_size - start} bytes of data; its shape {list(shape)} needs {size}"
        )
    if math.prod(shape[1:]) * dtype.itemsize > MAX_ROW_BYTES:
        raise _refusal(path, f"{name!r} has samples of more than {MAX_ROW_BYTES} bytes")
    if by_columns and size > _MAX_WHOLE_BYTES:
        raise _refusal(path, f"{name!r} is large and stored by columns; save numpy.ascontiguousarray of it")
    return Member(name, dtype, shape, by_columns, start, entry.filename)


def _header(path: Path, name: str, stream: IO[bytes]) -> tuple[bytes, int]:
    """The text of an npy header and the bytes up to the data (NEP 1: magic, version, length, text)."""
    magic = _exactly(stream, 8)
    if not magic.startswith(b"\x93NUMPY") or magic[6] not in (1, 2, 3):
        raise _refusal(path, f"{name!r} is not an npy array")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(_exactly(stream, width), "little")
    if length > _MAX_HEADER_BYTES:
        raise _refusal(path, f"{name!r} has a header of {length} bytes; at most {_MAX_HEADER_BYTES} are read")
    return _exactly(stream, length), 8 + width + length


def _parsed(path: Path, name: str, header: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    try:
        read = ast.literal_eval(header.decode("latin-1").strip())
        descr, shape, by_columns = read["descr"], read["shape"], read["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise _refusal(path, f"the header of {name!r} cannot be read") from error
    if isinstance(descr, str) and descr.endswith("O"):
        raise _refusal(path, f"{name!r} holds Python objects; expected numbers (nothing is unpickled)")
    if not isinstance(descr, str) or not _PLAIN.fullmatch(descr):
        raise _refusal(path, f"{name!r} has elements {str(descr)[:60]!r}; expected booleans, integers or floats")
    sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or not 1 <= len(shape) <= _MAX_DIMENSIONS or type(by_columns) is not bool:
        raise _refusal(
            path, f"{name!r} has shape {str(shape)[:60]}; expected 1 to {_MAX_DIMENSIONS} sizes, samples first"
        )
    return np.dtype(descr), shape, by_columns


def _exactly(stream: IO[bytes], count: int) -> bytes:
    """`zipfile` may hand out fewer bytes than asked for."""
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(min(count - len(parts), _BLOCK_BYTES))
        if not part:
            raise EOFError("the data end early")
        parts += part
    return bytes(parts)


def _refusal(path: Path, reason: str) -> ModelRefused:
    return ModelRefused(f"{path.name}: {reason}")


def _said(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
