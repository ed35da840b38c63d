"""SIGTERM: not ready at once, every accepted request answered, exit code 0; with requests in line, half sent, stuck."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest

from tests.hostile.wire import Client, Reply, assert_serves, json_body, post, repository, short_post, wait_in_flight
from tests.support.servers import Server, until

READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: test\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
_MEASURED_S = 0.4
"""Of a busy machine, to run the server's last steps and to see its last line."""


def finished(server: Server) -> bool:
    """Whether its first process, which is the last to end, has said so."""
    return any(f"Finished server process [{server.process.pid}]" in line for line in server.log)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(repository(), *getattr(request, "param", ()))
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def end(server: Server) -> None:
    """SIGTERM, and wait until the server has heard it."""
    with Client(server.port) as client:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.ask(READY).status == 400, "not ready", 5, 0.005)


def refused(server: Server) -> None:
    """A new request meets a closed door or the news that the server stops."""
    with contextlib.suppress(ConnectionError), Client(server.port) as client:
        reply = client.ask(short_post("m"))
        assert reply.status == 503
        assert "Server is stopping" in reply.error
        assert int(reply.headers["retry-after"]) >= 1


def test_sixteen_in_flight_are_answered(server):
    clients = [Client(server.port) for _ in range(16)]
    idle = Client(server.port)
    assert idle.ask(LIVE).status == 200
    for value, client in enumerate(clients):
        client.send(short_post("patient", value))
    wait_in_flight(server, "patient", 16)
    end(server)
    refused(server)
    for value, client in enumerate(clients):
        reply = client.read()
        assert reply.json()["outputs"][0]["data"] == [2.0 * value] * 16
        assert reply.headers["connection"] == "close"
        assert client.ended()
        client.socket.close()
    assert idle.ended()
    idle.socket.close()
    assert server.process.wait(10) == 0
    assert not [event for event in server.log_events() if event["level"] in ("ERROR", "CRITICAL")]


def test_every_request_in_line_is_answered(server):
    """Those whose turn comes after the signal are told so; the last answer closes."""
    with Client(server.port) as client:
        client.send(short_post("patient", 4) + LIVE + short_post("m") + post("nope", b"{}") + short_post("m"))
        wait_in_flight(server, "patient", 1)
        end(server)
        assert client.read().json()["outputs"][0]["data"][0] == 8
        assert client.read().json() == {"live": True}
        replies: list[Reply] = [client.read() for _ in range(3)]
        assert [reply.status for reply in replies] == [503, 404, 503]
        assert "Server is stopping" in replies[0].error
        assert "connection" not in replies[0].headers
        assert replies[2].headers["connection"] == "close"
        assert client.ended()
    assert server.process.wait(10) == 0


def test_a_request_still_being_sent_is_told(server):
    """It was begun before the signal: it gets an answer, not a closed connection."""
    body = json_body()
    with Client(server.port) as client, Client(server.port) as held:
        client.send(post("m", body)[:-10])
        held.send(short_post("patient"))
        wait_in_flight(server, "patient", 1)
        end(server)
        assert held.read().status == 200
        until(lambda: any("Shutting down" in line for line in server.log), "shutting down")
        reply = client.ask(body[-10:])
        assert reply.status == 503
        assert client.ended()
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("server", [("--drain-s", "1")], indirect=True)
def test_a_request_that_never_ends_is_left_behind(server):
    with Client(server.port) as client:
        client.send(post("m", json_body())[:-10])
        assert_serves(server)
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: finished(server), "the last log line", 20, 0.005)
        assert 0.5 < time.monotonic() - started_s < 1 + _MEASURED_S
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("server", [("--delay-scheduler", "1000")], indirect=True)
def test_a_second_signal_ends_it_now(server):
    with Client(server.port) as client:
        client.send(short_post("m"))
        wait_in_flight(server, "m", 1)
        end(server)
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(10)
        assert time.monotonic() - started_s < 5
    assert code == 0
    until(lambda: finished(server), "the last log line")
    assert not [event for event in server.log_events() if event["level"] in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize("server", [("--delay-scheduler", "1000", "--drain-s", "1")], indirect=True)
def test_a_drain_has_an_end(server):
    """What is stuck longer than drain_s is given up; the end of the process itself comes on top."""
    with Client(server.port) as client:
        client.send(short_post("m"))
        wait_in_flight(server, "m", 1)
        started_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: finished(server), "the last log line", 20, 0.005)
        assert 0.5 < time.monotonic() - started_s < 1 + _MEASURED_S
        assert server.process.wait(20) == 0


def test_interrupt_is_a_drain_too(server):
    with Client(server.port) as client:
        client.send(short_post("patient"))
        wait_in_flight(server, "patient", 1)
        server.process.send_signal(signal.SIGINT)
        assert client.read().status == 200
    assert server.process.wait(10) == 0
