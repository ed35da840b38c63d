"""`python -m app.bench.child FD`: the load, in a process of its own, so that display and plot do not disturb it.

It ends when the other side of the socket FD does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import sys
import time
from array import array

from app.bench.answers import Answers
from app.bench.arrivals import Closed, Open, Plan
from app.bench.driver import Address, Driver, run
from app.bench.messages import LENGTH, Ended, Load, Order, Setup, Stop, Told, decode_order, encode
from app.bench.rotation import Rotation
from app.bench.seen import Seen

_NS = 1_000_000_000


class _Child:
    """Runs what it is ordered, one run after the other."""

    def __init__(self, setup: Setup, writer: asyncio.StreamWriter) -> None:
        self._setup, self._writer = setup, writer
        self._rotation = Rotation(setup.requests, setup.rows)
        self._driver: Driver | None = None
        self._connections = 0
        self._seen = Seen()
        self._run: asyncio.Task[None] | None = None

    def order(self, message: Order) -> None:
        if isinstance(message, Load):
            self._run = asyncio.get_running_loop().create_task(self._load(message))
        elif isinstance(message, Stop) and self._driver is not None:
            self._driver.stop()

    async def _load(self, load: Load) -> None:
        try:
            await self._measure(load)
        except Exception as error:  # said on the other side, in one line
            self._say(Ended(0.0, 0.0, 0, 0, False, f"{type(error).__name__}: {error}"))

    async def _measure(self, load: Load) -> None:
        driver = await self._driver_of(load.connections)
        self._seen = Seen()
        plan = _plan(load, self._setup.timeout_s)
        gc.collect()
        gc.disable()  # a collection takes milliseconds, which would be a latency
        begun_s = time.process_time()
        seconds = await driver.run(plan, self._seen, self._tell)
        cpu_s = time.process_time() - begun_s
        gc.enable()
        self._tell()
        self._say(Ended(seconds, cpu_s, plan.taken, driver.opened, driver.gone))

    async def _driver_of(self, connections: int) -> Driver:
        if self._driver is None or self._connections != connections:
            await self.close()
            setup, self._connections = self._setup, connections
            check = Answers(setup.outputs, setup.rows)
            address = Address(setup.host, setup.port)
            self._driver = Driver(address, self._rotation, connections, setup.timeout_s, check)
        return self._driver

    def _tell(self) -> None:
        self._say(Told(self._seen.increment()))

    def _say(self, message: Told | Ended) -> None:
        self._writer.write(encode(message))  # kept here while the other side does not read

    async def close(self) -> None:
        if self._driver is not None:
            await self._driver.close()


def _plan(load: Load, timeout_s: float) -> Plan:
    if load.dues is None:
        return Closed(load.seconds, load.requests)
    dues_ns = array("q")
    dues_ns.frombytes(load.dues)
    window_ns = None if load.seconds is None else round(load.seconds * _NS)
    return Open(dues_ns, window_ns, round(timeout_s * _NS))


async def _serve(file: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=file))
    child: _Child | None = None
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            message = decode_order(await reader.readexactly(length))
            if child is None:
                assert isinstance(message, Setup), "the first message is the setup"
                child = _Child(message, writer)
            else:
                child.order(message)


def _allow_connections() -> None:
    """As many as the system lets this process have: the usual limit is below what a server takes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    _allow_connections()
    run(_serve(int(sys.argv[1])))
