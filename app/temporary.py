"""Folders for one child process each, which even a server that was killed does not leave for ever."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from app.settings import Settings

__all__ = ["own_folder", "sweep_folders", "with_mirror"]

_NAME = re.compile(r"bitserve-(?:build|mirror|page|tune)-([0-9]{1,9})-[^-]+")
_changing = threading.Lock()
"""A folder that was made and is not locked yet looks as if its owner were gone."""


@contextlib.contextmanager
def own_folder(kind: str) -> Iterator[Path]:
    """A folder `bitserve-<kind>-<process id>-...` among the temporary ones, locked while it is in use; then gone."""
    with contextlib.ExitStack() as stack:
        prefix = f"bitserve-{kind}-{os.getpid()}-"
        with _changing:
            made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            with contextlib.suppress(OSError):  # a file system may know no locks
                stack.enter_context(_locked(folder))
        yield folder


def with_mirror(settings: Settings, leaving: contextlib.ExitStack) -> Settings:
    """The settings, with a mirror that goes when `leaving` is closed where a store needs one and none is set."""
    if settings.store is None or settings.mirror is not None:
        return settings
    return settings.model_copy(update={"mirror": leaving.enter_context(own_folder("mirror"))})


def sweep_folders() -> int:
    """Remove those whose owner is gone: not of another user, not of a process that lives, not one that is locked."""
    removed = 0
    with _changing:
        for folder in Path(tempfile.gettempdir()).glob("bitserve-*"):
            named = _NAME.fullmatch(folder.name)
            if named is not None and _may_be_left(int(named[1])):
                with contextlib.suppress(OSError):
                    removed += _remove(folder)
    return removed


def _may_be_left(owner: int) -> bool:
    """In a container that is started anew, the server has the number that it had before."""
    return owner == os.getpid() or not _runs(owner)


def _runs(process: int) -> bool:
    """Not where it has ended and only its parent was not told yet, which may take a second where that is the first of
    a container.
    """
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _remove(folder: Path) -> bool:
    """Only what nobody has locked: processes in other containers cannot be seen, their locks can."""
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        return False
    with _locked(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError where another has locked it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
