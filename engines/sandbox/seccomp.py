"""A filter of system calls (seccomp-bpf, Linux 3.17): ways out of the sandbox that no rule about files stops.

A socket of the file system is reached by `connect` wherever its file may be, so there are no sockets of that family but
pairs, which are connected already. io_uring would open them past this filter, what System V keeps (shared memory,
queues) outlives its maker, and who is not dumpable hides from its watcher which files it has open. Needs no privilege;
structures are those of <linux/filter.h> and <linux/seccomp.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Argument", "refuse", "refuse_ways_out"]

_SET_DUMPABLE, _NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 4, 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF: a word, jumps, a mask, the end
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data
_OTHER_INTERFACE = 0x40000000  # x32 has the numbers from here on, on x86_64
_KIND_OF_SOCKET = 0xF  # the rest of a type are flags
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "socketpair": 53, "prctl": 157, "shmget": 29, "semget": 64, "msgget": 68},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "socketpair": 199, "prctl": 167, "shmget": 194, "semget": 190, "msgget": 186},
    ),
}
_IO_URING_SETUP = 425  # the same number on every architecture


class Argument(NamedTuple):
    """An argument of a system call (0 = the first): where it has this value, as far as `mask` goes, it is refused."""

    place: int
    value: int
    mask: int = 0xFFFFFFFF


def refuse_ways_out() -> None:
    """From here on, for good, in this process and all it starts. Raises OSError where the kernel has no such filter."""
    _, numbers = _machine()
    refuse({
        numbers["socket"]: Argument(0, socket.AF_UNIX),
        # a pair of these can be connected to another
        numbers["socketpair"]: Argument(1, socket.SOCK_DGRAM, _KIND_OF_SOCKET),
        numbers["prctl"]: Argument(0, _SET_DUMPABLE),
        **{numbers[name]: None for name in ("shmget", "semget", "msgget")},
        _IO_URING_SETUP: None,
    })  # fmt: skip


def refuse(calls: Mapping[int, Argument | None]) -> None:
    """Have these calls (by number) answered with EPERM, those with an argument only where it is so."""
    architecture, _ = _machine()
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),  # calls of 32 bits have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _OTHER_INTERFACE),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number, argument in calls.items():
        rule = [(_RETURN, 0, 0, _REFUSE)]
        if argument is not None:
            rule = [
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument.place),  # its lower half: these machines are little-endian
                (_AND, 0, 0, argument.mask),
                (_EQUAL, 0, 1, argument.value),
                *rule,
                (_LOAD, 0, 0, _NUMBER),
            ]
        program += [(_EQUAL, 0, len(rule), number), *rule]
    program.append((_RETURN, 0, 0, _ALLOW))
    _install(b"".join(struct.pack("=HBBI", *step) for step in program), len(program))


def _machine() -> tuple[int, dict[str, int]]:
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no numbers of system calls are known for {platform.machine()}")
    return _MACHINES[platform.machine()]


def _install(program: bytes, length: int) -> None:
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", length, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
