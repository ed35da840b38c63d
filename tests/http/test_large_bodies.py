"""Large coded bodies are unpacked and packed beside the event loop; its threads are held, so that it can be seen."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn

from app.http.workers import INLINE_BYTES
from app.server import Drain, DrainingServer
from tests.hostile.wire import WIDE, Client, json_body, post
from tests.http.benches import Bench, on_the_wire, until, with_bench
from tests.support.servers import ADMIN, running

LARGE = json_body(3.0, padding="." * INLINE_BYTES)
GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(LARGE), id="small on the wire"),
        pytest.param(gzip.compress(LARGE, 0), id="large on the wire"),
    ],
)
def test_a_large_body_is_unpacked_beside_the_loop(wire_repository: Path, body: bytes) -> None:
    async def test(bench: Bench) -> None:
        bench.hold()
        large = bench.ask(body, GZIP)
        await until(lambda: bench.held == 1)
        small = await bench.ask(gzip.compress(json_body(2.0)), GZIP)
        assert small.json()["outputs"][0]["data"] == [4.0] * 16
        assert not large.done()
        assert bench.handler.room.held_bytes >= len(body)
        bench.let_go()
        assert (await large).json()["outputs"][0]["data"] == [6.0] * 16
        assert bench.handler.room.held_bytes == 0
        await until(lambda: bench.handler.workers.busy == 0)  # the answer may come first

    with_bench(wire_repository, test)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (gzip.compress(LARGE)[:-9], 400, "incomplete"),
        (gzip.compress(b" " * INLINE_BYTES * 2) + b"garbage", 400, "the body is not gzip"),
        (gzip.compress(b" " * 135_000_000), 413, "see setting max_body_bytes"),
        (gzip.compress(b"{" + b" " * INLINE_BYTES * 2), 400, "failed to parse"),
    ],
    ids=["cut", "garbage", "bomb", "no JSON"],
)
def test_what_a_thread_finds_wrong_is_answered(wire_repository: Path, body: bytes, status: int, said: str) -> None:
    async def test(bench: Bench) -> None:
        answer = await bench.ask(body, GZIP)
        assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text
        assert bench.handler.room.held_bytes == 0
        assert bench.handler.gateway.resolve("m").stats.failures["OTHER"] == 1

    with_bench(wire_repository, test)


def test_a_client_may_leave_while_its_body_is_unpacked(wire_repository: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.hold()
        before = bench.cancelled()
        staying, kept = on_the_wire(bench, gzip.compress(LARGE), b"gzip")
        leaving, unread = on_the_wire(bench, gzip.compress(LARGE), b"gzip")
        asgi = bench.ask(gzip.compress(LARGE), GZIP)
        await until(lambda: bench.held == 3)
        leaving.abandon()
        asgi.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asgi
        assert bench.cancelled() == before + 2
        assert bench.handler.room.held_bytes == staying.hold.size_bytes > 0
        bench.let_go()
        await until(lambda: kept.answers)
        await until(lambda: bench.handler.in_flight == 0)
        assert [answer.status for answer in kept.answers] == [200]
        assert unread.answers == []
        assert bench.cancelled() == before + 2
        assert bench.handler.room.held_bytes == 0

    with_bench(wire_repository, test)


def test_a_drain_waits_for_bodies_that_are_unpacked(wire_repository: Path) -> None:
    async def test(bench: Bench) -> None:
        stops: list[bool] = []
        drain = Drain(60, bench.app.state.gateway.stop, lambda: bench.handler.in_flight, lambda: stops.append(True))
        server = DrainingServer(uvicorn.Config(bench.app), drain)
        bench.hold()
        large = bench.ask(gzip.compress(LARGE), GZIP)
        await until(lambda: bench.held == 1)
        assert not await server.on_tick(1)
        assert not stops
        server.handle_exit(signal.SIGTERM, None)
        for tick in range(2, 6):
            assert not await server.on_tick(tick)
        assert len(stops) == 1, "loads are told once"
        late = await bench.ask(json_body(2.0))
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert "Server is stopping" in late.json()["error"]
        bench.let_go()
        answer = await large
        assert answer.json()["outputs"][0]["data"] == [6.0] * 16, "it was accepted before the signal"
        await until(lambda: bench.handler.workers.busy == 0)
        assert await server.on_tick(6)

    with_bench(wire_repository, test)


def test_a_large_answer_is_packed_beside_the_loop(wire_repository: Path) -> None:
    tensor = {"name": "X", "datatype": "FP32", "shape": [8, 1], "data": [1.0] * 8}
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    async def test(bench: Bench) -> None:
        bench.hold()
        large = bench.ask(body, {"Accept-Encoding": "gzip"}, "/v2/models/wide/infer")
        await until(lambda: bench.held == 1)
        small = await bench.ask(json_body(2.0), {"Accept-Encoding": "gzip"})
        assert small.headers["content-encoding"] == "gzip"
        bench.let_go()
        answer = await large
        assert answer.headers["content-encoding"] == "gzip"
        assert len(answer.content) > 8 * WIDE * 4 > INLINE_BYTES
        assert bench.handler.room.held_bytes == 0

    with_bench(wire_repository, test)


def test_a_signal_while_a_body_is_unpacked_costs_no_answer(wire_repository: Path) -> None:
    """Over TCP, where only the order of things is known: the body came before the signal."""
    body = gzip.compress(b'{"inputs": [], "padding": "' + b"." * 120_000_000 + b'"}')
    with running(wire_repository) as server, Client(server.port) as client:
        server.wait_ready("m")
        client.send(post("m", body, ["Content-Encoding: gzip"]))
        server.process.send_signal(signal.SIGTERM)
        reply = client.read()
        assert reply.status in (400, 503), "400 where the body was there in whole before the signal"
        assert server.process.wait(30) == 0


def test_control_plane_bodies_go_the_same_way(wire_repository: Path) -> None:
    async def test(bench: Bench) -> None:
        load, index = "/v2/repository/models/nowhere/load", "/v2/repository/index"
        for size in (10, 3 * INLINE_BYTES):
            answer = await bench.ask(gzip.compress(b"{}" + b" " * size), {**GZIP, **ADMIN}, load)
            assert (answer.status_code, "no such model" in answer.json()["error"]) == (400, True), answer.text
        cut = await bench.ask(gzip.compress(b" " * 3 * INLINE_BYTES)[:-9], {**GZIP, **ADMIN}, load)
        assert (cut.status_code, "incomplete" in cut.json()["error"]) == (400, True)
        bomb = await bench.ask(gzip.compress(b" " * 135_000_000), {**GZIP, **ADMIN}, load)
        assert bomb.status_code == 413
        for coded in ({}, GZIP):
            body = b'{"ready": true}' + b" " * INLINE_BYTES
            answer = await bench.ask(gzip.compress(body) if coded else body, coded, index)
            assert answer.status_code == 413

    with_bench(wire_repository, test)


def test_files_of_a_load_call_are_decoded_beside_the_loop(wire_repository: Path) -> None:
    load = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "no base64!"}}).encode()

    async def test(bench: Bench) -> None:
        loop, gate = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        held = loop.run_in_executor(None, gate.wait)
        loading = bench.ask(load, ADMIN, path="/v2/repository/models/m/load")
        try:
            for _ in range(5):
                assert (await bench.client.get("/v2/health/live")).status_code == 200
            assert not loading.done()
        finally:
            gate.set()
            await held
        answer = await loading
        assert (answer.status_code, "is not base64" in answer.json()["error"]) == (400, True)

    with_bench(wire_repository, test)
