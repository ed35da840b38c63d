"""max_held_bytes counts bodies of the control plane, too: on the wire, decompressed, and files that came as base64."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator

import pytest

from app.config import config_of
from app.http.files import brought_files
from app.http.held import Hold, Room
from app.serving.errors import QueueFull
from tests.hostile.wire import AsgiServer, Client, post, short_post, wait_in_flight
from tests.http.test_held_bytes import LARGE, LIMIT, assert_no_room, held_until
from tests.support.servers import Server, until

LOAD, INDEX = "/v2/repository/models/m/load", "/v2/repository/index"
OVERRIDE = json.dumps({"parameters": {"config": json.dumps({"max_batch_size": 8}), "note": "." * 50_000}}).encode()
PADDED = b'{"ready": true}' + b" " * 50_000
CODED = ["Content-Encoding: gzip"]
CHUNKED = ["Transfer-Encoding: chunked"]
BODIES: dict[str, Callable[[], bytes]] = {
    "config override": lambda: post(LOAD, OVERRIDE),
    "plain": lambda: post(INDEX, PADDED),
    "gzip": lambda: post(INDEX, gzip.compress(PADDED), CODED),
    "chunked": lambda: post(INDEX, b"%x\r\n%s\r\n0\r\n\r\n" % (len(PADDED), PADDED), CHUNKED, length=False),
}


@pytest.fixture(params=[Server, AsgiServer])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = held_until(request.param, 2, "--max-body-bytes", str(2 * LIMIT))
    yield server
    server.stop()


def test_a_body_counts_beside_those_of_inference_calls(server: Server) -> None:
    with Client(server.port) as waiting, Client(server.port) as other:
        waiting.send(LARGE["plain"]())
        wait_in_flight(server, "m", 1)
        for body in BODIES.values():
            with Client(server.port) as refused:
                assert_no_room(refused.ask(body()))
        with Client(server.port) as client:
            assert client.ask(post(INDEX, b'{"ready": true}')).status == 200  # a small one fits beside it
        with Client(server.port) as client:
            assert client.ask(post(INDEX, b" " * (2 * LIMIT + 1))).status == 413
        assert other.ask(short_post("m")).status == 200
        assert waiting.read().status == 200
    for _ in range(2):  # what was answered is no longer counted
        for body in BODIES.values():
            with Client(server.port) as client:
                assert client.ask(body()).status == 200


def test_a_body_that_arrives_counts_until_its_client_leaves(server: Server) -> None:
    def refused() -> bool:
        with Client(server.port) as client:
            return client.ask(BODIES["plain"]()).status == 503

    with Client(server.port) as leaver:
        leaver.send(BODIES["config override"]()[:-10])
        until(refused, "a body that has arrived in part is counted")
    until(lambda: not refused(), "room again when the leaver is noticed")


def test_files_count_decoded() -> None:
    room = Room(100)
    hold, text = Hold(room), base64.b64encode(bytes(60)).decode()
    Hold(room).take(30)
    config = config_of({}, "config")
    assert brought_files({"file:1/model.onnx": text}, config, hold.take) == {1: bytes(60)}
    assert room.held_bytes == 90
    with pytest.raises(QueueFull, match="see setting max_held_bytes"):
        brought_files({"file:2/model.onnx": text}, config, hold.take)
