"""Landlock (Linux 5.13): this process and all it starts may touch only the files that are named. Needs no privilege.

Structures and numbers are those of the kernel's <linux/landlock.h>; access rights that an older kernel does not know
are left out. A restricted process can also not look into processes outside (their environment, their memory).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = ["restrict", "version"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the rights, from the lowest bit on, each version of the interface knows (REFER, TRUNCATE, IOCTL_DEV)."""
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15
_TCP = 0b11  # bind and connect, from version 4 on
_SCOPES = 0b11  # abstract sockets and signals stay inside, from version 6 on


def version() -> int:
    """The version of the interface that the kernel offers; 0 where there is none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Deny all other files, and TCP, from here on, for good. Paths that do not exist are passed over.

    Raises OSError where the kernel refuses.
    """
    number = version()
    every = (1 << _RIGHTS_BY_VERSION.get(number, 16)) - 1
    ruleset = struct.pack("QQQ", every, _TCP if number >= 4 else 0, _SCOPES if number >= 6 else 0)
    size = 24 if number >= 6 else 16 if number >= 4 else 8
    descriptor = _checked(_call(_CREATE_RULESET, ruleset, size, 0))
    try:
        for path in readable:
            _allow(descriptor, path, _READ & every)
        for path in writable:
            _allow(descriptor, path, every)
        libc = ctypes.CDLL(None, use_errno=True)
        _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_call(_RESTRICT_SELF, descriptor, 0))
    finally:
        os.close(descriptor)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= _ON_FILES
            _checked(_call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0))
        finally:
            if path.is_relative_to("/proc"):
                # held for good: where memory is short the kernel forgets what nobody holds, and what it then makes
                # anew in /proc under the same name is another file to Landlock
                os.set_inheritable(place, True)
            else:
                os.close(place)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *(_as_c(argument) for argument in arguments)))


def _as_c(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
