"""The processes of a server with front ends, told apart by what they have open."""

from __future__ import annotations

import psutil

from tests.hostile.wire import Client
from tests.support.servers import Server

__all__ = ["Clients", "engine_of", "front_ends_of", "owner_of"]


def _children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def _listens(process: psutil.Process) -> bool:
    try:
        return any(found.status == psutil.CONN_LISTEN for found in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def front_ends_of(server: Server) -> list[psutil.Process]:
    """Those that take connections."""
    return [child for child in _children(server) if _listens(child)]


def engine_of(server: Server) -> psutil.Process:
    """The one that takes none."""
    (engine,) = [child for child in _children(server) if not _listens(child)]
    return engine


def owner_of(server: Server, client: Client) -> psutil.Process:
    """The front end that has accepted this connection."""
    port = client.socket.getsockname()[1]
    (owner,) = [
        child
        for child in front_ends_of(server)
        if any(found.raddr and found.raddr.port == port for found in child.net_connections("tcp"))
    ]
    return owner


class Clients:
    """Connections to every front end: the system divides them as it likes. All are closed in the end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._made: list[Client] = []

    def __call__(self, count: int) -> dict[int, list[Client]]:
        """So many new ones to each front end, by its process id."""
        found: dict[int, list[Client]] = {child.pid: [] for child in front_ends_of(self._server)}
        for _ in range(200):
            if all(len(clients) >= count for clients in found.values()):
                break
            client = Client(self._server.port)
            self._made.append(client)
            client.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            clients = found[owner_of(self._server, client).pid]
            if len(clients) < count:
                clients.append(client)
            else:
                client.socket.close()
        assert all(len(clients) == count for clients in found.values()), found
        return found

    def close(self) -> None:
        for client in self._made:
            client.socket.close()
