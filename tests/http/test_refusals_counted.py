"""A refused call of a known model is in that model's counters, once, whoever refused it; others are in none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.wire import AsgiServer, Client, json_body, metric, post, repository, short_post, wait_in_flight
from tests.support.servers import Server

CAP = 100_000
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (CAP + 1, b" " * (CAP + 1))


@pytest.fixture(scope="module", params=[Server, AsgiServer])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = request.param(repository(), "--max-body-bytes", str(CAP))
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def counted(server: Server, **labels: str) -> tuple[float, float]:
    """(failures for other reasons, rejected calls)"""
    return (
        metric(server, "nv_inference_request_failure", reason="OTHER", **labels),
        metric(server, "bitserve_request_duration_seconds_count", outcome="rejected", **labels),
    )


REFUSED = {
    "no JSON": (400, post("m", b"{")),
    "a wrong header length": (400, post("m", json_body(), ["Inference-Header-Content-Length: 99999"])),
    "wrong counts": (400, post("m", json_body().replace(b"[1, 16]", b"[1, 15]"))),
    "a wrong shape": (400, post("m", json_body(width=15))),
    "no gzip": (400, post("m", json_body(), ["Content-Encoding: gzip"])),
    "an unknown coding": (400, post("m", json_body(), ["Content-Encoding: br"])),
    "an announced body over the cap": (413, post("m", b"", [f"Content-Length: {CAP + 1}"], length=False)),
    "a body over the cap": (413, post("m", CHUNKED, ["Transfer-Encoding: chunked"], length=False)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_is_counted_once(server: Server, what: str) -> None:
    status, data = REFUSED[what]
    failures, rejected = counted(server, model="m")
    with Client(server.port) as client:
        assert client.ask(data).status == status
    assert counted(server, model="m") == (failures + 1, rejected + 1)


def test_a_refusal_in_line_is_counted_once(server: Server) -> None:
    failures, rejected = counted(server, model="m")
    with Client(server.port) as client:
        client.send(short_post("slow") + post("m", b"{") + post("m", b" " * (CAP + 1)))
        assert [client.read().status for _ in range(3)] == [200, 400, 413]
    assert counted(server, model="m") == (failures + 2, rejected + 2)


@pytest.mark.parametrize("path", ["nope", "/v2/models/m/versions/7/infer", "/v2/models/m/versions/x/infer"])
def test_what_names_no_model_is_in_no_counter(server: Server, path: str) -> None:
    before = counted(server)
    for data in (post(path, b"{"), post(path, b"", [f"Content-Length: {CAP + 1}"], length=False)):
        with Client(server.port) as client:
            assert client.ask(data).status in (404, 413)
    assert counted(server) == before


def test_what_the_gateway_refuses_keeps_its_reason(server: Server) -> None:
    """A request over the queue's limit is REJECTED there, and not counted again here."""
    before = counted(server, model="narrow")
    rejected = metric(server, "nv_inference_request_failure", reason="REJECTED", model="narrow")
    with Client(server.port) as waiting, Client(server.port) as client:
        waiting.send(short_post("narrow"))
        wait_in_flight(server, "narrow", 1)
        assert client.ask(short_post("narrow")).status == 503
    assert metric(server, "nv_inference_request_failure", reason="REJECTED", model="narrow") == rejected + 1
    assert counted(server, model="narrow") == (before[0], before[1] + 1)
