"""One server at a time builds in a repository: a lock on its folder of builds, which ends with its holder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

__all__ = ["BuildsLock"]

log = logging.getLogger(__name__)
_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})


class BuildsLock:
    """Held until `release`, or until the process ends, however it does."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._descriptor = folder, -1

    def take(self) -> bool:
        """False where another process holds it.

        True, with a line in the log, where the file system cannot lock: then nothing is known of others.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            return self._without(error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return error.errno not in _HELD and self._without(error)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _without(self, error: OSError) -> bool:
        log.warning("builds cannot be locked (%s); let no other server build in this repository", error.strerror)
        return True
