"""Signatures of plans for GPUs: a plan is native code to its library, and runs only if this installation made it.

HMAC-SHA-256 (RFC 2104) of the manifest, which holds the hashes of the plans. Only a server or the command signs, once
it has looked at what its compiler left; the key is nothing that a compiler may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

__all__ = ["KEY_FILE", "SIGNATURE_FILE", "is_signed", "key_in", "sign"]

SIGNATURE_FILE = "signature"
KEY_FILE = ".plan-key"
_KEY_BYTES = 32
_MOST_BYTES = 4096


def sign(manifest: bytes, key: bytes) -> bytes:
    """What goes into `SIGNATURE_FILE`: hex digits."""
    return hmac.new(key, manifest, hashlib.sha256).hexdigest().encode() + b"\n"


def is_signed(folder: Path, manifest: bytes, key: bytes | None) -> bool:
    """Whether the signature in `folder` is that of the manifest's bytes by this key; never without a key."""
    if not key:
        return False
    try:
        with (folder / SIGNATURE_FILE).open("rb") as file:
            found = file.read(_MOST_BYTES)
    except OSError:
        return False
    return hmac.compare_digest(found, sign(manifest, key))


def key_in(folder: Path, *, make: bool = True) -> bytes | None:
    """The key that lies in a folder, readable by its owner alone; made now if there is none and `make`.

    Of several processes that make one at the same time, all get the one that came first. None where there is none and
    none can be written.
    """
    file = folder / KEY_FILE
    with contextlib.suppress(OSError):
        if not file.exists() and make:
            _make(file)
        return file.read_bytes().strip() or None
    return None


def _make(file: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f"{KEY_FILE}.", dir=file.parent)  # mkstemp: its owner's alone
    try:
        with os.fdopen(descriptor, "wb") as new:
            new.write(secrets.token_hex(_KEY_BYTES).encode() + b"\n")
            new.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(name, file)
    finally:
        os.unlink(name)
