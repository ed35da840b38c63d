"""max_held_bytes: what is held of bodies counts, decompressed too, on both faces, and no longer than it is held."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator

import pytest

from app.http.held import Hold, Room
from app.serving.errors import Cancelled, QueueFull
from tests.hostile.wire import (
    AsgiServer,
    Client,
    Reply,
    json_body,
    metric,
    post,
    repository,
    short_post,
    wait_in_flight,
)
from tests.support.servers import Server, until

LIMIT = 60_000
PADDED = json_body(padding="." * 50_000)
"""One fits, two do not; packed, it is some hundred bytes."""
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PADDED), PADDED)
LARGE: dict[str, Callable[[], bytes]] = {
    "plain": lambda: post("m", PADDED),
    "gzip": lambda: post("m", gzip.compress(PADDED), ["Content-Encoding: gzip"]),
    "chunked": lambda: post("m", CHUNKS, ["Transfer-Encoding: chunked"], length=False),
}


def held_until(face: type[Server], requests: int, *flags: str) -> Server:
    """A server whose first batch waits for so many requests."""
    server = face(repository(), "--max-held-bytes", str(LIMIT), "--delay-scheduler", str(requests), *flags)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


@pytest.fixture(params=[Server, AsgiServer])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = held_until(request.param, 2)
    yield server
    server.stop()


def assert_no_room(reply: Reply) -> None:
    assert reply.status == 503
    assert "see setting max_held_bytes" in reply.error
    assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize("second", LARGE)
@pytest.mark.parametrize("first", ["plain", "gzip"])
def test_a_body_counts_as_what_it_becomes_until_it_is_answered(server: Server, first: str, second: str) -> None:
    with Client(server.port) as waiting, Client(server.port) as other:
        waiting.send(LARGE[first]())
        wait_in_flight(server, "m", 1)
        with Client(server.port) as refused:
            assert_no_room(refused.ask(LARGE[second]()))
        assert other.ask(short_post("m")).status == 200  # a small one fits beside it, and makes the batch full
        assert waiting.read().status == 200
    for _ in range(3):
        with Client(server.port) as client:
            assert client.ask(LARGE[second]()).status == 200


@pytest.mark.parametrize("coding", ["plain", "gzip"])
def test_a_client_that_leaves_gives_its_bytes_back(server: Server, coding: str) -> None:
    with Client(server.port) as waiting:
        waiting.send(LARGE[coding]())
        wait_in_flight(server, "m", 1)
    wait_in_flight(server, "m", 0)
    with Client(server.port) as waiting, Client(server.port) as other:
        waiting.send(LARGE[coding]())
        wait_in_flight(server, "m", 1)
        assert other.ask(short_post("m")).status == 200
        assert waiting.read().status == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_gives_it_back(server: Server) -> None:
    with Client(server.port) as leaver:
        leaver.send(LARGE["plain"]()[:-10])

    def room() -> bool:
        with Client(server.port) as client:  # a broken body, so that nothing is queued
            return client.ask(post("m", b"{" * 50_000)).status == 400

    until(room, "room again when the leaver is noticed")


def test_a_refused_request_in_line_is_answered_in_its_turn() -> None:
    """With the status and the header of a refusal, not as something that is no HTTP."""
    server = held_until(Server, 3)
    try:
        with Client(server.port) as large, Client(server.port) as line, Client(server.port) as last:
            large.send(post("m", json_body(padding="." * (LIMIT - 4_000))))
            wait_in_flight(server, "m", 1)
            line.send(short_post("m", 5) + post("m", json_body(padding="." * 6_000)))
            wait_in_flight(server, "m", 2)
            assert last.ask(short_post("m")).status == 200
            assert line.read().json()["outputs"][0]["data"][0] == 10
            assert_no_room(line.read())
            assert line.ended()
            assert large.read().status == 200
        assert metric(server, "nv_inference_request_failure", model="m", reason="OTHER") == 1
    finally:
        server.stop()


def test_one_alone_may_be_larger_than_the_limit() -> None:
    room = Room(100)
    alone = Hold(room)
    alone.take(90)
    alone.take(500)
    with pytest.raises(QueueFull, match="holds 590 bytes"):
        Hold(room).take(1)
    with pytest.raises(QueueFull):
        Hold(room).check(1)
    alone.give_back(560)
    other = Hold(room)
    other.take(70)
    with pytest.raises(QueueFull):
        alone.take(1)
    other.release()
    assert room.held_bytes == 30
    alone.release()
    alone.release()
    assert room.held_bytes == 0
    with pytest.raises(Cancelled):
        alone.take(1)


def test_a_body_that_grows_over_the_limit_is_refused_and_leaves_nothing_behind(server: Server) -> None:
    """Two that are small on the wire: the second is found out while it is unpacked."""
    packed = gzip.compress(json.dumps({"inputs": [], "padding": "." * 500_000}).encode())
    with Client(server.port) as waiting, Client(server.port) as client, Client(server.port) as other:
        waiting.send(LARGE["gzip"]())
        wait_in_flight(server, "m", 1)
        assert_no_room(client.ask(post("m", packed, ["Content-Encoding: gzip"])))
        assert other.ask(short_post("m")).status == 200
        assert waiting.read().status == 200
    with Client(server.port) as client:  # alone it may: it is merely wrong
        assert client.ask(post("m", packed, ["Content-Encoding: gzip"])).status == 400
