"""Kernels that TensorRT-RTX compiled on a GPU, kept for the next time. They are native code: only what was signed by
this installation is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
from pathlib import Path

__all__ = ["KeptKernels"]

_SIGNATURE_BYTES = hashlib.sha256().digest_size


class KeptKernels:
    """In one file, behind their signature: those of a plan, on one kind of GPU with one driver."""

    def __init__(self, file: Path, key: bytes) -> None:
        self._file, self._key = file, key

    def read(self) -> bytes:
        """Empty where there are none, or they are not ours."""
        try:
            found = self._file.read_bytes()
        except OSError:
            return b""
        signature, content = found[:_SIGNATURE_BYTES], found[_SIGNATURE_BYTES:]
        return content if hmac.compare_digest(signature, self._signature(content)) else b""

    def write(self, content: bytes) -> None:
        """In the place of those before. Where that fails, they are compiled again."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f"{self._file.name}.", dir=self._file.parent)
            try:
                with os.fdopen(descriptor, "wb") as new:
                    new.write(self._signature(content) + content)
                os.replace(name, self._file)
            except BaseException:
                os.unlink(name)
                raise

    def _signature(self, content: bytes) -> bytes:
        return hmac.new(self._key, content, hashlib.sha256).digest()
