"""Clients that leave: in the middle of a body, of a wait, of an answer. Their tickets go, nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.hostile.wire import (
    AsgiServer,
    Client,
    assert_serves,
    cancelled,
    in_flight,
    post,
    repository,
    short_post,
    wait_in_flight,
)  # fmt: skip
from tests.support.servers import TOKEN, Server, running, until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(scope="module", params=[Server, AsgiServer])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = request.param(repository())
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def gone(server: Server, before: int, count: int = 1) -> None:
    until(lambda: cancelled(server, "patient") == before + count, f"{count} tickets cancelled", 20)
    until(lambda: in_flight(server, "patient") == 0, "nothing in flight", 20)


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_client_that_leaves_while_it_waits_is_cancelled(server, how):
    """Half-closing counts as leaving: an end of the stream is all that a server sees of a closed client."""
    before = cancelled(server, "patient")
    with Client(server.port) as client:
        client.send(short_post("patient"))
        wait_in_flight(server, "patient", 1)
        {"close": client.socket.close, "reset": client.reset, "half_close": client.half_close}[how]()
        gone(server, before)
    assert_serves(server)


def test_others_of_the_batch_get_their_answers(server):
    before = cancelled(server, "patient")
    clients = [Client(server.port) for _ in range(8)]
    for value, client in enumerate(clients):
        client.send(short_post("patient", value))
    wait_in_flight(server, "patient", 8)
    for client in clients[::2]:
        client.reset()
    for value, client in list(enumerate(clients))[1::2]:
        assert client.read().json()["outputs"][0]["data"] == [2.0 * value] * 16
        client.socket.close()
    gone(server, before, 4)


@pytest.mark.parametrize("cut", [1, 60, 150, 200])
def test_a_client_that_leaves_in_the_middle_of_a_request(server, cut):
    before = cancelled(server, "m")
    with Client(server.port) as client:
        client.send(short_post("m")[:cut])
        client.reset()
    with Client(server.port) as client:
        client.send(short_post("m")[:cut])
    assert_serves(server)
    assert cancelled(server, "m") == before


def test_a_client_that_leaves_with_requests_in_line(server):
    """The first is withdrawn; those behind it are never begun."""
    before = cancelled(server, "patient")
    with Client(server.port) as client:
        client.send(short_post("patient") + short_post("m") * 5 + LIVE)
        wait_in_flight(server, "patient", 1)
        client.reset()
    # while requests wait in line the server reads nothing more, so it may notice only when it answers
    until(lambda: in_flight(server, "patient") == 0, "nothing in flight", 20)
    assert cancelled(server, "patient") - before in (0, 1)
    assert_serves(server)


def test_a_client_that_leaves_while_it_is_answered(server):
    for _ in range(5):
        with Client(server.port, receive_bytes=4096) as client:
            client.send(short_post("wide"))
            client.socket.recv(100)
            client.reset()
    assert_serves(server)
    assert not [line for line in server.log if "Traceback" in line]


def test_half_close_after_the_answer_has_begun(server):
    with Client(server.port) as client:
        client.send(short_post("wide"))
        client.socket.recv(1, 2)  # MSG_PEEK: the answer is on its way
        client.half_close()
        assert client.read().status == 200


def test_many_clients_that_leave_free_their_slots(server):
    before = cancelled(server, "patient")
    for _ in range(3):
        clients = [Client(server.port) for _ in range(20)]
        for client in clients:
            client.send(short_post("patient"))
        wait_in_flight(server, "patient", 20)
        for client in clients:
            client.socket.close()
        until(lambda: in_flight(server, "patient") == 0, "nothing in flight", 20)
    assert cancelled(server, "patient") == before + 60
    assert_serves(server)


def test_a_body_cut_short_by_a_half_close(server):
    with Client(server.port) as client:
        client.send(post("m", b"{}" * 50)[:-10])
        client.half_close()
        assert client.ended()
    assert_serves(server)


def test_a_client_that_leaves_within_a_control_body_is_one_line_of_the_log():
    paths = ["repository/index", "repository/models/m/unload", "logging"]
    with running(repository()) as server:
        server.wait_ready()
        headers = ["Host: test", f"Authorization: Bearer {TOKEN}", "Content-Length: 100"]
        for path in paths:
            with Client(server.port) as client:
                client.send("\r\n".join([f"POST /v2/{path} HTTP/1.1", *headers, "", "{"]).encode())
                assert_serves(server)
        said = until(lambda: lines if len(lines := left(server)) == len(paths) else None, "a line for each")
        assert {event["level"] for event in said} == {"INFO"}
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert len(left(server)) == len(paths)
        assert not [event for event in server.log_events() if event["level"] in ("ERROR", "CRITICAL")]


def left(server: Server) -> list[dict[str, Any]]:
    return [event for event in server.log_events() if "its client left" in event["message"]]
