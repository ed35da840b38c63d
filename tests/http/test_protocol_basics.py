"""HTTP as bytes on a connection: keep-alive, pipelining, Expect, HTTP/1.0, chunked bodies, upgrades, bad requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.wire import Client, assert_serves, json_body, post, repository, short_post
from tests.support.servers import Server, running

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
METADATA = b"GET /v2/models/m HTTP/1.1\r\nHost: test\r\n\r\n"
CAP = 1_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(repository(), "--max-body-bytes", str(CAP)) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.port) as client:
        yield client


def first_value(reply) -> float:
    assert reply.status == 200, reply
    return float(reply.json()["outputs"][0]["data"][0])


def chunked(body: bytes, size: int, trailer: bytes = b"") -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


def test_a_connection_serves_many_requests_of_both_kinds(client):
    for value in range(20):
        assert first_value(client.ask(short_post("m", value))) == 2 * value
        assert client.ask(LIVE).json() == {"live": True}


def test_pipelined_fast_and_slow_answers_keep_their_order(client):
    kinds = [short_post("slow"), short_post("m", 1), LIVE, short_post("m", 2), METADATA, post("m", b"{"), LIVE] * 3
    client.send(b"".join(kinds))
    for _ in range(3):
        assert client.read().json()["model_name"] == "slow"
        assert first_value(client.read()) == 2
        assert client.read().json() == {"live": True}
        assert first_value(client.read()) == 4
        assert client.read().json()["name"] == "m"
        assert client.read().status == 400
        assert client.read().json() == {"live": True}


def test_300_requests_in_one_segment(client):
    client.send(b"".join(short_post("m", value) for value in range(300)))
    assert [first_value(client.read()) for _ in range(300)] == [2.0 * value for value in range(300)]


def test_3000_refused_requests_in_a_row(client):
    client.send(post("nope", b"{}") * 3000)
    assert {client.read().status for _ in range(3000)} == {404}


def test_requests_byte_by_byte(client):
    for byte in short_post("m", 4) + LIVE:
        client.send(bytes((byte,)))
    assert first_value(client.read()) == 8
    assert client.read().status == 200


def test_a_large_body_and_the_head_of_the_next_in_one_segment(client):
    """The bytes of a body must not count as the next request's headers."""
    body = json_body() + b" " * 200_000
    following = short_post("m", 5)
    client.send(post("m", body) + following[:20])
    assert client.read().status == 200
    client.send(following[20:])
    assert first_value(client.read()) == 10


def test_an_answer_before_the_end_of_a_body_leaves_the_connection_whole(client):
    """A wrong path is answered at once, and the rest of its body is no request."""
    request = post("/v2/nothing", b"x" * 900_000)
    client.send(request[:1000])
    assert client.read().error == "Not Found"
    for start in range(1000, len(request), 100_000):
        client.send(request[start : start + 100_000])
    assert first_value(client.ask(short_post("m", 6))) == 12


@pytest.mark.parametrize("target", ["m", "/v2/repository/index"])
def test_expect_100_continue(client, target):
    body = json_body() if target == "m" else b"{}"
    request = post(target, body, ["Expect: 100-continue"])
    client.send(request[: -len(body)])
    assert client.read().status == 100
    assert client.ask(body).status == 200
    assert client.ask(post(target, body, ["Expect: 100-continue"])).status in (100, 200)


def test_expect_behind_another_request_waits_its_turn(client):
    body = json_body(3)
    client.send(short_post("slow") + post("m", body, ["Expect: 100-continue"])[: -len(body)])
    assert client.read().json()["model_name"] == "slow"
    assert client.read().status == 100
    assert first_value(client.ask(body)) == 6


def test_expect_with_too_large_a_body_is_refused_at_once(client):
    client.send(
        f"POST /v2/models/m/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {CAP + 1}\r\n\r\n".encode()
    )
    reply = client.read()
    assert reply.status == 413
    assert reply.headers["connection"] == "close"
    assert str(CAP) in reply.error
    assert client.ended()


@pytest.mark.parametrize("request_bytes", [post("m", json_body(), version="1.0"), LIVE.replace(b"1.1", b"1.0")])
def test_http_1_0_is_answered_and_closed(client, request_bytes):
    reply = client.ask(request_bytes)
    assert reply.status == 200
    assert reply.headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize(
    "request_bytes", [short_post("m", headers=["Connection: close"]), LIVE.replace(b"Host: test", b"Connection: close")]
)
def test_connection_close(client, request_bytes):
    reply = client.ask(request_bytes + LIVE * 2)
    assert reply.status == 200
    assert reply.headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_chunked_bodies(client, size):
    head = post("m", b"", ["Transfer-Encoding: chunked"], length=False)
    body = json_body(2)
    request = head + chunked(body, size, b"Trailer: x\r\n")
    client.send(request + request + LIVE)
    assert first_value(client.read()) == 4
    assert first_value(client.read()) == 4
    assert client.read().status == 200
    for start in range(0, len(request), 501):
        client.send(request[start : start + 501])
    assert first_value(client.read()) == 4


def test_chunked_control_plane(client):
    head = post("/v2/repository/index", b"", ["Transfer-Encoding: chunked"], length=False)
    assert client.ask(head + chunked(b'{"ready":true}', 3)).status == 200


@pytest.mark.parametrize(
    "broken",
    [
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 5x\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /v2/repository/index HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}xyz\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /v2/\xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_400_and_closed(server, client, broken):
    reply = client.ask(broken)
    assert reply.status == 400
    assert reply.headers["connection"] == "close"
    assert reply.error
    assert client.ended()
    assert_serves(server)


@pytest.mark.parametrize(
    "broken",
    [b"FOO / HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n" + LIVE,
     post("m", b"", ["Transfer-Encoding: chunked"], length=False) + b"5\r\n{....xyz",
     post("/v2/repository/index", b"", ["Transfer-Encoding: chunked"], length=False) + b"xyz\r\n"],
)  # fmt: skip
def test_a_broken_request_does_not_cost_the_answers_before_it(client, broken):
    client.send(short_post("slow") + LIVE + short_post("slow") + broken)
    assert [client.read().status for _ in range(4)] == [200, 200, 200, 400]
    assert client.ended()


H2C = ["Upgrade: h2c", "Connection: keep-alive, Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"]


@pytest.mark.parametrize("offer", [["Upgrade: websocket", "Connection: Upgrade"], H2C])
def test_an_offer_to_upgrade_is_declined(client, offer):
    """Java's client makes one on every first request."""
    request = short_post("m", 7, offer)
    client.send(request + LIVE)
    assert first_value(client.read()) == 14
    assert client.read().status == 200
    client.send(request[:150])
    assert first_value(client.ask(request[150:])) == 14
    assert client.ask(LIVE.replace(b"Host: test", "\r\n".join(offer).encode())).json() == {"live": True}


PATHS = dict.fromkeys(
    [
        "/v2", "/v2/models/m", "/v2/models/m/versions/1", "/v2/models/m/config", "/v2/models/m/stats",
        "/v2/models/stats", "/metrics",
    ],
    "GET",
)  # fmt: skip
PROBED = [f"/v2/{path}" for path in (
    "health/live", "health/ready", "health/started", "models/m/ready", "models/m/versions/1/ready",
)]  # fmt: skip
PATHS |= dict.fromkeys(PROBED, "GET, HEAD")
PATHS |= dict.fromkeys(
    [
        "/v2/models/m/infer", "/v2/models/m/versions/1/infer", "/v2/repository/index", "/v2/repository/models/m/load",
        "/v2/repository/models/m/unload",
    ],
    "POST",
)  # fmt: skip
PATHS["/v2/logging"] = "GET, POST"


@pytest.mark.parametrize("path", PATHS)
def test_wrong_methods(client, path):
    allowed = PATHS[path].split(", ")
    for method in {"HEAD", "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - set(allowed):
        client.send(f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        reply = client.read(head_only=method == "HEAD")
        assert reply.status == 405, (method, path)
        assert reply.headers["allow"] == PATHS[path]
        if method != "HEAD":
            assert reply.error == "Method Not Allowed"


@pytest.mark.parametrize(
    ("path", "status"),
    [*((path, 200) for path in PROBED), ("/v2/models/nope/ready", 400), ("/v2/models/m/versions/9/ready", 400)],
)
def test_probes_may_ask_for_the_head_alone(client, path, status):
    """As GET, without its body: the next answer on the connection begins right behind the head."""
    head = client.send(f"HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()).read(head_only=True)
    whole = client.ask(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    assert (head.status, head.headers, head.body) == (status, whole.headers, b"")


UNKNOWN = [
    "/", "/v1", "/v2/", "/v2/models", "/v2/models/m/", "/v2/models/m/versions/1x", "/v2/models/m/trace/setting/x",
    "//v2", "*",
]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_paths(client, path):
    reply = client.ask(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    assert reply.status == 404
    assert reply.error == "Not Found"
    assert client.ask(LIVE).status == 200


def test_other_forms_of_a_target(client):
    assert client.ask(short_post("m").replace(b"/v2/models", b"http://test/v2/models", 1)).status == 200
    assert client.ask(short_post("m").replace(b"/infer", b"/infer?x=%20", 1)).status == 200


def test_stray_line_ends_between_requests(client):
    assert client.ask(short_post("m") + b"\r\n").status == 200
    assert client.ask(b"\r\n" + short_post("m")).status == 200
