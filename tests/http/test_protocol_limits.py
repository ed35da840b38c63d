"""What bounds a connection: body cap, header bytes, the four timeouts, the number of connections, what is unread."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from tests.hostile.wire import (
    WIDE,
    Client,
    assert_serves,
    binary_body,
    in_flight,
    json_body,
    post,
    repository,
    short_post,
)
from tests.support.servers import Server, running, until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
CAP = 1_000_000
MAX_CONNECTIONS = 20
CHUNKED = post("m", b"", ["Transfer-Encoding: chunked"], length=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    times = [
        "--header-timeout-s",
        "0.6",
        "--body-timeout-s",
        "0.9",
        "--keep-alive-s",
        "1.2",
        "--write-timeout-s",
        "1.5",
    ]
    limits = ["--max-body-bytes", str(CAP), "--max-connections", str(MAX_CONNECTIONS)]
    with running(repository(), *times, *limits) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.port) as client:
        yield client


def pour(client: Client, piece: bytes, most_bytes: int) -> int:
    """Send until the server stops taking it; the bytes sent."""
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while sent < most_bytes:
            client.send(piece)
            sent += len(piece)
    return sent


# -- body cap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["m", "/v2/repository/index", "/v2/logging"])
def test_announced_body_over_the_cap(server, client, path):
    """The client is told while it still sends: the answer must not be lost to a reset."""
    client.send(post(path, b"", [f"Content-Length: {8 * CAP}"], length=False))
    writer = threading.Thread(target=pour, args=(client, b" " * 65536, 8 * CAP))
    writer.start()
    reply = client.read()
    writer.join()
    assert reply.status == 413
    assert f"more than {CAP} bytes; see setting max_body_bytes" in reply.error
    assert_serves(server)


@pytest.mark.parametrize(("path", "status"), [("m", 413), ("/v2/repository/index", 413), ("/v2/nothing", 404)])
def test_an_early_answer_that_closes_is_not_lost_either(client, path, status):
    client.send(post(path, b"", [f"Content-Length: {8 * CAP}", "Connection: close"], length=False))
    writer = threading.Thread(target=pour, args=(client, b" " * 65536, 8 * CAP))
    writer.start()
    reply = client.read()
    writer.join()
    assert reply.status == status
    assert reply.headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize("path", ["m", "/v2/repository/index"])
def test_chunked_body_over_the_cap(server, client, path):
    client.send(CHUNKED if path == "m" else CHUNKED.replace(b"/v2/models/m/infer", path.encode()))
    pour(client, b"10000\r\n" + b" " * 65536 + b"\r\n", 2 * CAP)
    reply = client.read()
    assert reply.status == 413
    assert str(CAP) in reply.error
    assert_serves(server)


def test_a_whole_chunked_body_over_the_cap_in_one_go(server, client):
    """The end of the body and another request may be in the segment that went over."""
    client.send(CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (CAP + 1, b" " * (CAP + 1)) + LIVE)
    assert client.read().status == 413
    assert client.ended()
    assert_serves(server)


def test_pipelined_body_over_the_cap(client):
    client.send(short_post("slow") + short_post("m") + post("m", b"x" * (CAP + 1)) + LIVE)
    assert [client.read().status for _ in range(3)] == [200, 200, 413]
    assert client.ended()


# -- headers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 80_000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"X: aaaaaaaaaaaaaaaa\r\n" * 4000 + b"\r\n",
        b"GET /" + b"v" * 80_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nX: " + b"a" * 80_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_too_many_header_bytes(server, client, head):
    reply = client.ask(head)
    assert reply.status == 400
    assert "more than 65536 bytes" in reply.error
    assert client.ended()
    assert_serves(server)


@pytest.mark.parametrize(
    "start", [b"GET /v2 HTTP/1.1\r\n", CHUNKED + b"0\r\n", CHUNKED + b"5;x=", CHUNKED + b"0\r\nX: "]
)
def test_endless_headers_trailers_and_extensions(server, client, start):
    piece = b"a" * 1024 if start.endswith((b"=", b" ")) else b"X: " + b"a" * 1000 + b"\r\n"
    client.send(start)
    pour(client, piece, 2_000_000)
    reply = client.read()
    assert reply.status == 400
    assert "more than 65536 bytes" in reply.error
    assert_serves(server)


def test_large_headers_within_the_limit(client):
    assert client.ask(short_post("m", headers=[f"X: {'a' * 60_000}"])).status == 200


# -- timeouts ----------------------------------------------------------------------------------------------------


def took_s(client: Client) -> float:
    started_s = time.monotonic()
    assert client.ended()
    return time.monotonic() - started_s


def test_header_timeout(server, client):
    reply = client.ask(b"POST /v2/models/m/infer HTTP/1.1\r\nHos")
    assert reply.status == 400
    assert "headers did not arrive within 0.6 s" in reply.error
    assert client.ended()
    assert_serves(server)


def test_header_timeout_of_a_drip(client):
    """A byte now and then does not buy time."""
    deadline_s = time.monotonic() + 10
    client.socket.settimeout(0.2)
    client.send(b"GET /v2 HTTP/1.1\r\nX: ")
    while time.monotonic() < deadline_s:
        with contextlib.suppress(TimeoutError):
            assert client.read().status == 400
            return
        client.send(b"a")
    pytest.fail("still open")


def test_a_silent_connection_is_closed(client):
    assert took_s(client) < 5


@pytest.mark.parametrize("path", ["m", "/v2/repository/index"])
def test_body_timeout(server, client, path):
    reply = client.ask(post(path, b"{}" * 50)[:-3])
    assert reply.status == 400
    assert "body arrived within 0.9 s" in reply.error
    assert client.ended()
    assert_serves(server)


def test_a_late_head_does_not_cost_the_answer_before_it(client):
    """That one takes a second, longer than the time for headers."""
    client.send(short_post("patient") + b"GET /v2 HT")
    assert client.read().status == 200
    assert "headers did not arrive" in client.read().error
    assert client.ended()


def test_a_body_that_waits_its_turn_is_not_late(client):
    """The server stops listening to it; the request before it takes longer than the time for bodies."""
    request = short_post("m", 2)
    client.send(short_post("patient") + short_post("patient") + request[:-20])
    assert [client.read().status for _ in range(2)] == [200, 200]
    assert client.ask(request[-20:]).json()["outputs"][0]["data"][0] == 4


@pytest.mark.parametrize("request_bytes", [LIVE, short_post("m")])
def test_keep_alive_timeout(client, request_bytes):
    assert client.ask(request_bytes).status == 200
    assert 1.0 < took_s(client) < 5


# -- connections -------------------------------------------------------------------------------------------------


def test_connection_limit(server):
    def live() -> bool:
        with contextlib.suppress(OSError), Client(server.port) as client:
            return client.ask(LIVE).status == 200
        return False

    until(live, "room for a connection")
    with contextlib.ExitStack() as stack:
        admitted = refused = 0
        held = [stack.enter_context(Client(server.port)) for _ in range(MAX_CONNECTIONS + 6)]
        for client in held:
            reply = client.ask(short_post("m"))
            if reply.status == 200:
                admitted += 1
                continue
            refused += 1
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            assert f"the server has {MAX_CONNECTIONS} open connections; see setting max_connections" in reply.error
            assert client.ended()
        assert admitted >= MAX_CONNECTIONS - 2
        assert refused >= 6
    until(live, "room again")


# -- clients that do not read ------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_bounded_and_ended(server):
    """2000 small requests for 8 MB each must not become 16 GB of answers, nor slow anyone down."""
    process = psutil.Process(server.process.pid)
    tensor = {"name": "X", "datatype": "FP32", "shape": [32, 1], "data": [1] * 32}
    request = post("wide", json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode())
    with Client(server.port) as warm:
        assert len(warm.ask(request).body) > 32 * WIDE * 4
    before_bytes = process.memory_info().rss
    with Client(server.port, receive_bytes=4096) as client:
        client.socket.settimeout(0.3)
        pour(client, request * 20, 2000 * len(request))
        for value in range(20):
            assert_serves(server, value)
        assert process.memory_info().rss - before_bytes < 100_000_000
        until(lambda: not connected(server, client), "write timeout", 15)
    until(lambda: in_flight(server, "wide") == 0, "nothing in flight")
    assert_serves(server)


def connected(server: Server, client: Client) -> bool:
    """Whether the server still holds its end of the connection."""
    port = client.socket.getsockname()[1]
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return any(c.raddr and c.raddr.port == port and c.status == "ESTABLISHED" for c in found)


def test_a_slow_reader_that_reads_gets_everything(client):
    """Progress, however slow, is not a timeout; and pipelined requests go on when there is room again."""
    body, header = binary_body(np.ones((8, 1), "<f4"))
    client.send(post("wide", body, [header]) * 6)
    for _ in range(6):
        assert len(client.read().body) > 8 * WIDE * 4


def test_small_body_after_large(client):
    assert client.ask(post("m", json_body() + b" " * 500_000)).status == 200
    assert client.ask(short_post("m")).status == 200
