"""The sockets of a server, taken before anything else is started: a port in use is said in one line."""

from __future__ import annotations

import errno
import socket

__all__ = ["BACKLOG", "CannotListen", "listen"]

BACKLOG = 2048


class CannotListen(Exception):
    """The port is in use, or the host is not of this machine; the message says what to do."""


def listen(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of `host`, listening, so that no other server can take the port. CannotListen if not.

    Port 0 is one that is free.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(socket.socket(family, kind, protocol))
            _bind(sockets[-1], address)
    except OSError as error:
        for made in sockets:
            made.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(f"port {port} of {host} is in use; choose another with --port") from error
        reason = error.strerror or str(error)
        raise CannotListen(f"cannot listen on port {port} of {host}: {reason}; see --host and --port") from error
    return sockets


def _bind(made: socket.socket, address: object) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended
    if made.family == socket.AF_INET6:  # IPv4 has a socket of its own
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(address)  # type: ignore[arg-type]
    made.listen(BACKLOG)
    made.setblocking(False)
