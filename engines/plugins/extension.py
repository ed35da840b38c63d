"""The compiled extension with the native kernels of binary layers: where it lies, and what it is."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

__all__ = ["extension_digest", "extension_path"]

_NAME = "libbitserve_bnn.plugin"


@functools.cache
def extension_path() -> Path | None:
    """The compiled extension: beside this package, or where it was installed to; None where nothing was compiled."""
    places = [Path(__file__).parent / "cpu" / _NAME]
    places += [
        Path(str(one.locate_file(f"engines/plugins/cpu/{_NAME}"))) for one in metadata.distributions(name="bitserve")
    ]
    return next((place for place in places if place.is_file()), None)


@functools.cache
def extension_digest() -> str:
    """Twelve hex digits of the extension's SHA-256, part of every plan's key; "none" where there is none."""
    path = extension_path()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path else "none"
