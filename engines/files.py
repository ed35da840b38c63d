"""Open a file that somebody else may have put there: never through a link, never what is no plain file."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from engines.errors import ModelRefused

__all__ = ["open_plain"]


def open_plain(path: Path) -> io.BufferedReader:
    """The file for reading. Raises ModelRefused where it is a link, or no plain file; OSError where it cannot be read.

    What is opened is looked at, not the name: between a look at a name and its opening another file may take it.
    """
    # said first, for its message; O_NOFOLLOW holds where a link comes in between. A pipe must not keep us waiting
    if path.is_symlink():
        raise ModelRefused(f"{path.name} is a symbolic link; put the file itself there")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelRefused(f"{path.name} is not a regular file")
    return open(descriptor, "rb")
