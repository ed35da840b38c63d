"""The sockets of a server, taken before anything else is started: a port in use is said in one line."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

__all__ = ["BACKLOG", "CannotListen", "listen", "listen_shared", "log_listening"]

log = logging.getLogger(__name__)
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


def listen_shared(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """As `listen`, so many times: the system divides connections among the sockets of an address. CannotListen if not.

    A socket that shares its port lets any other of the same user in, another server's, too: so the port is taken
    without that first.
    """
    alone = listen(host, port)
    addresses = [(made.family, made.getsockname()) for made in alone]
    for made in alone:
        made.close()
    shares: list[list[socket.socket]] = []
    for _ in range(count):
        shares.append([])
        for family, address in addresses:
            shares[-1].append(socket.socket(family, socket.SOCK_STREAM))
            shares[-1][-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(shares[-1][-1], address)
    return shares


def log_listening(host: str, sockets: Sequence[socket.socket]) -> None:
    """In uvicorn's words, which people and scripts know."""
    port = sockets[0].getsockname()[1]
    log.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", f"[{host}]" if ":" in host else host, port)


def _bind(made: socket.socket, address: object) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended
    if made.family == socket.AF_INET6:  # IPv4 has a socket of its own
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(address)  # type: ignore[arg-type]
    made.listen(BACKLOG)
    made.setblocking(False)
