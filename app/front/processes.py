"""What the supervisor's children do: the one that runs the engines, and front ends."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from app.front.memory import HELD_BYTES, OPEN_CONNECTIONS, SharedMemory
from app.settings import Settings

__all__ = ["DRAIN", "LEAVE", "UP", "Addresses", "begin_child", "run_engine", "run_front_end"]

DRAIN, LEAVE, UP = signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1
"""The supervisor's words to a child; and a child's to the supervisor, that it takes connections."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Addresses(NamedTuple):
    """Of the engine's Unix sockets, in the abstract name space: no file, and gone with the last process."""

    links: str
    http: str


def begin_child(supervisor: int) -> None:
    """After the fork: die with the supervisor, and leave to it what the terminal or a process group is told.

    It dies at once, as the supervisor did: who kills a server and starts another must find its port and files free. A
    handler that does nothing, and not SIG_IGN: that would be inherited by the compilers that this process starts.
    """
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    for number in (DRAIN, LEAVE):  # until it serves, there is nothing to drain
        signal.signal(number, lambda *_: os._exit(0))
    if os.getppid() != supervisor:  # it has ended before it could be told to tell us
        os._exit(1)


def run_engine(settings: Settings, shared: SharedMemory, links: socket.socket, http: socket.socket) -> None:
    """The whole server, on a Unix socket of its own, and what front ends ask beside it."""
    import uvloop

    uvloop.run(_engine(settings, shared, links, http))


async def _engine(settings: Settings, shared: SharedMemory, links: socket.socket, http: socket.socket) -> None:
    from app.front.links import Links
    from app.main import create_app, drain_of
    from app.server import DrainingServer, protocol_config

    engine = len(shared.cells) - 1
    app = create_app(settings, shared.tally(engine, HELD_BYTES))
    asked = Links(app.state.gateway, shared)
    alone = drain_of(app, settings)
    drain = dataclasses.replace(
        alone, signals=(DRAIN, LEAVE), leave_signal=LEAVE, in_flight=lambda: alone.in_flight() + asked.count
    )
    # every connection that front ends have may be here twice: while one ends, and the next one begins
    wide = settings.model_copy(update={"max_connections": 2 * settings.max_connections + 64})
    config = protocol_config(app, app.state.handler, wide)
    config.http = _for_own_user(config.http)
    server = DrainingServer(config, drain)
    listening = await asked.serve(links)
    await server.serve([http])
    listening.close()


def _for_own_user(protocol: Any) -> Any:
    """The same protocol for processes of this user: its socket has no permissions that would keep others out."""
    from app.front.peers import peer_uid

    class Own(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if peer_uid(transport) != os.getuid():
                transport.abort()

    return Own


def run_front_end(
    settings: Settings, shared: SharedMemory, index: int, sockets: Sequence[socket.socket], addresses: Addresses
) -> None:
    """Takes connections, answers inference calls through the engine process, and passes on the rest."""
    import uvloop

    uvloop.run(_front_end(settings, shared, index, sockets, addresses))


async def _front_end(
    settings: Settings, shared: SharedMemory, index: int, sockets: Sequence[socket.socket], addresses: Addresses
) -> None:
    from app.front.arena import Arena
    from app.front.connecting import EngineConnection
    from app.front.gateway import GONE, FrontGateway
    from app.front.known import KnownVersions
    from app.front.proxy import Proxy
    from app.http.held import Room
    from app.http.infer import InferHandler
    from app.server import Drain, DrainingServer, protocol_config

    cells = shared.cells[index]
    arena = Arena(shared.arenas[index])
    gateway = FrontGateway(arena, KnownVersions(cells))
    room = Room(settings.max_held_bytes, shared.tally(index, HELD_BYTES))
    handler = InferHandler(gateway, settings.max_body_bytes, room=room, access_log=settings.access_log)
    drain = Drain(settings.drain_s, gateway.stop, lambda: handler.in_flight, signals=(DRAIN, LEAVE), leave_signal=LEAVE)

    def started() -> None:
        cells.up = True
        os.kill(os.getppid(), UP)

    proxy = Proxy(addresses.http, lambda: gateway.has_engine, GONE)
    open_connections = shared.tally(index, OPEN_CONNECTIONS)
    config = protocol_config(proxy, handler, settings, open_connections, lifespan="off")
    server = DrainingServer(config, drain, started)
    engine = EngineConnection(addresses.links, index, gateway)
    engine.start()
    await engine.first.wait()
    arena.clear()  # of what the front end before this one has left: the engine has withdrawn its calls
    await server.serve(list(sockets))
    handler.workers.close()
