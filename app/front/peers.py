"""Who is on the other side of a Unix socket, as the system knows it."""

from __future__ import annotations

import asyncio
import socket
import struct

__all__ = ["peer_uid"]

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of <sys/socket.h>: process, user and group."""


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """The user of the process that has connected."""
    connection = transport.get_extra_info("socket")
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])
