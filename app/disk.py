"""A full disk, said in words that tell which folder has no room."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from engines.errors import EngineError

__all__ = ["is_full", "naming_full_disk"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: OSError) -> bool:
    """Whether a disk, or a user's part of it, has no room."""
    return error.errno in _FULL


@contextlib.contextmanager
def naming_full_disk(where: str) -> Iterator[None]:
    """Raises EngineError that names the folder where what is done in it fails for want of room."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise EngineError(f"no space left in {where}") from error
        raise
