"""What a publication says of itself: the last object that is written of it, and the first that is read.

    <place>/published.json             size and SHA-256 of every file, and in which folder they are; made once
    <place>/<attempt>/<file>           the files; every attempt to publish has a folder of its own

A place is `<model>/<version>`, or `.plans/<key>`. Until `published.json` is there nothing is, for any reader; of two
writers of one place the store lets one make it. Only it says which attempt counts, so none can spoil another's files.
"""

from __future__ import annotations

import hashlib
import hmac
import re

import msgspec

from app.store.errors import StoreRefused

__all__ = ["LARGEST_BYTES", "PUBLISHED", "File", "Published", "decode", "encode", "signed"]

PUBLISHED = "published.json"
LARGEST_BYTES = 2**20
"""Of `published.json`."""
_FORMAT = 1
_ATTEMPT = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file, as it was when it was published."""

    size_bytes: int
    sha256: str


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signature` is empty, or HMAC-SHA-256 (RFC 2104) of all the rest: hex digits."""

    attempt: str
    files: dict[str, File]
    signature: str = ""
    format: int = _FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    def is_signed(self, key: bytes) -> bool:
        """Whether the signature was made with this key."""
        return hmac.compare_digest(self.signature, signed(self, key).signature)


def signed(published: Published, key: bytes) -> Published:
    """The same with its signature."""
    bare = msgspec.structs.replace(published, signature="")
    digest = hmac.new(key, encode(bare), hashlib.sha256).hexdigest()
    return msgspec.structs.replace(bare, signature=digest)


def encode(published: Published) -> bytes:
    """The same bytes for the same content."""
    return msgspec.json.encode(published, order="sorted")


def decode(data: bytes, place: str) -> Published:
    """Raises StoreRefused for anything but a publication whose names all stay in their folder."""
    try:
        found = msgspec.json.decode(data, type=Published)
    except msgspec.MsgspecError as error:
        raise StoreRefused(f"{place}/{PUBLISHED} cannot be read: {error}") from error
    if found.format != _FORMAT:
        raise StoreRefused(f"{place}/{PUBLISHED} has format {found.format}, expected {_FORMAT}: update this server")
    is_whole = bool(_ATTEMPT.fullmatch(found.attempt) and found.files)
    if not is_whole or not all(_is_file(name, file) for name, file in found.files.items()):
        raise StoreRefused(f"{place}/{PUBLISHED} names something that is no file of a publication")
    return found


def _is_file(name: str, file: File) -> bool:
    return bool(_FILE.fullmatch(name) and _SHA256.fullmatch(file.sha256)) and file.size_bytes >= 0
