"""One server for all hostile tests of a module; each test leaves it serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.wire import Client, assert_serves, repository
from tests.support.servers import Server, running

CAP = 1_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(repository(), "--max-body-bytes", str(CAP), "--watch-s", "0") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A connection; after the test the server must be live, right, and must have reported no failure of its own."""
    lines = len(server.log)
    with Client(server.port) as client:
        yield client
    assert server.process.poll() is None
    assert_serves(server)
    bad = [line for line in server.log[lines:] if "Traceback" in line or '"level": "ERROR"' in line]
    assert not bad, bad
