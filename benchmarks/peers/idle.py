"""Connections that have asked once and are then kept open without a word."""

from __future__ import annotations

import contextlib
import http.client
import resource
import select
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.wrk import Sent

__all__ = ["Closed", "idle_connections", "room_for"]


class Closed(Exception):
    """The server has closed connections that it was to keep."""


@contextlib.contextmanager
def idle_connections(base: str, count: int, sent: Sent) -> Iterator[None]:
    """Open until the end; Closed if not all are then. OSError or Closed where the server does not take them all."""
    place = urlsplit(base)
    with contextlib.ExitStack() as stack:
        opened = []
        for number in range(1, count + 1):
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
            stack.callback(connection.close)
            connection.request("POST", sent.path, sent.body, sent.headers)
            try:
                answer = connection.getresponse()
                answer.read()
            except http.client.HTTPException as error:
                raise Closed(f"connection {number} of {count} is not answered: {error!r}") from error
            if answer.status != http.client.OK or connection.sock is None:
                raise Closed(f"connection {number} of {count} is answered {answer.status} or not kept")
            opened.append(connection)
        yield
        # a socket that can be read has an end, or words that nobody asked for
        poll = select.poll()
        for connection in opened:
            poll.register(connection.sock, select.POLLIN)
        ended = len(poll.poll(0))
        if ended:
            raise Closed(f"{ended} of {count} idle connections were closed")


def room_for(count: int) -> None:
    """Let this process have so many files open, and a few more; RuntimeError where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RuntimeError(f"{wanted} open files are not allowed here, {hard} are")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
