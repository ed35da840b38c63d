"""Heads that come again are not parsed again: what is answered, counted and held is the same, however bytes arrive."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.http.held import Hold
from app.http.protocol import InferProtocol
from app.settings import Settings
from tests.hostile.wire import binary_body, json_body, post, repository
from tests.http.benches import Bench, until, with_bench
from tests.support.servers import ON_GPU

MOST_BODY_BYTES = 20_000
MOST_HELD_BYTES = 6_000
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


class Wire(asyncio.Transport):
    """What a connection writes, in one; `closed` where it wants no more."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.paused, self.closed = b"", False, False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written += b"<EOF>"

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True


class Connection:
    """One connection of a bench's application; `skipped` counts the heads that were not parsed."""

    def __init__(self, kind: type[InferProtocol], bench: Bench) -> None:
        config = uvicorn.Config(bench.app, http=kind, ws="none", lifespan="off", log_config=None)
        config.load()
        self.wire = Wire()
        self.protocol = kind(config=config, server_state=ServerState(), app_state={})
        self.protocol.connection_made(self.wire)
        self.skipped = 0
        take = self.protocol._take_known

        def counted(*args: Any) -> None:
            self.skipped += 1
            take(*args)

        self.protocol._take_known = counted  # type: ignore[method-assign]

    async def send(self, segments: list[bytes], *, await_each: bool) -> None:
        """As a socket would: nothing while reading is paused, nor once it is closed."""
        for segment in segments:
            await until(lambda: not self.wire.paused or self.wire.closed)
            if self.wire.closed:
                return
            self.protocol.data_received(segment)
            if await_each:
                await self.answered()

    async def answered(self) -> None:
        """Until all that has arrived whole is."""
        at = self.protocol
        await until(lambda: not at._owes() or self.wire.closed or (at._waits_for == "body" and at._current is at.cycle))

    @property
    def said(self) -> bytes:
        """Without the ids that the server has made up."""
        return re.sub(rb"(x-request-id: )[0-9a-f]{12}-[0-9a-f]+", rb"\1-", self.wire.written)

    @property
    def state(self) -> tuple[Any, ...]:
        at = self.protocol
        return at._waits_for, at._quiet_bytes, at._deaf, at.flow.read_paused, self.wire.closed, len(at.pipeline)


class Forgetful(InferProtocol):
    """The slow twin: every head is parsed."""

    _known = property(lambda self: None, lambda self, known: None)  # type: ignore[assignment]


Pair = tuple[Connection, Connection]


def connect(bench: Bench) -> Pair:
    settings = Settings(repository=repository())
    return tuple(Connection(kind.configure(bench.handler, settings), bench) for kind in (InferProtocol, Forgetful))


async def ask_both(pair: Pair, segments: list[bytes], *, await_each: bool = True) -> None:
    for one in pair:
        await one.send(segments, await_each=await_each)
        await one.answered()
    quick, slow = pair
    assert quick.said == slow.said
    assert quick.state == slow.state
    assert slow.skipped == 0


def binary(value: float = 1.0, rows: int = 1, headers: tuple[str, ...] = (), model: str = "m", **keys: Any) -> bytes:
    body, length = binary_body(np.full((rows, 16), value, np.float32), **keys)
    return post(model, body, [length, *headers])


def random_message(rng: random.Random) -> bytes:
    value = rng.random()
    kinds = [
        binary(value, rows=2),
        binary(value, headers=("x-request-id: mine",)),
        binary(value, model=rng.choice(["nope", "add_sub", "m/versions/1", "m/versions/7"])),
        binary(value, headers=("Expect: 100-continue",)),
        binary(value, headers=("Transfer-Encoding:",)),
        *[post("m", json_body(value))] * 2,
        post("m", b"{"),
        post("m", b""),
        post("m", b"0\r\n\r\n", ["Transfer-Encoding: chunked"], length=False),
        binary(value)[:-10] + b"\r\n\r\nPOST /" + b"?",
        binary(value).replace(b"\r\n", b"\n", 1),
        binary(value).replace(b"Host: test\r\n", b"Host: test\r\nAccept-Encoding: gzip\r\n"),
        LIVE,
        post("m", b"x" * (MOST_HELD_BYTES - 100)),
    ]
    message = binary(value) if rng.random() < 0.75 else rng.choice(kinds)
    return rng.choice([message] * 40 + [b"\r\n" + message, message + b"\r\n", message.replace(b"1.1", b"1.0", 1)])


def cut(rng: random.Random, stream: list[bytes]) -> list[bytes]:
    """Mostly a message in a segment; else they are joined, or cut anywhere."""
    segments: list[bytes] = []
    for message in stream:
        how = rng.random()
        if how < 0.15 and segments:
            segments[-1] += message
        elif how < 0.3:
            at = rng.randrange(1, len(message))
            segments += [message[:at], message[at:]]
        else:
            segments.append(message)
    return segments


@pytest.mark.parametrize("seed", range(2 if ON_GPU else 6))  # what is parsed, and what not, is no engine's matter
def test_random_streams_are_answered_the_same_with_and_without(seed: int) -> None:
    rng = random.Random(seed)

    async def run(bench: Bench) -> None:
        bench.handler.max_body_bytes, bench.handler.room.limit_bytes = MOST_BODY_BYTES, MOST_HELD_BYTES
        skipped = 0
        for _ in range(60):
            pair = connect(bench)
            stream = [random_message(rng) for _ in range(rng.randrange(1, 30))]
            is_patient = rng.random() < 0.8 or bool(ON_GPU)  # else what is held depends on when the GPU answers
            await ask_both(pair, cut(rng, stream), await_each=is_patient)
            skipped += pair[0].skipped
        assert skipped > 30
        assert bench.handler.room.held_bytes == 0

    with_bench(repository(), run)


def with_pair(test: Callable[[Bench, Pair], Awaitable[None]]) -> None:
    async def run(bench: Bench) -> None:
        await test(bench, connect(bench))

    with_bench(repository(), run)


def test_the_third_call_on_a_connection_is_not_parsed() -> None:
    async def run(_: Bench, pair: Pair) -> None:
        await ask_both(pair, [binary(1.0), binary(2.0), binary(3.0), binary(4.0)])
        assert pair[0].skipped == 2
        assert pair[0].wire.written.count(b"HTTP/1.1 200 OK") == 4
        assert pair[0].wire.written.endswith(np.full(16, 8.0, np.float32).tobytes())

    with_pair(run)


def test_segments_cut_at_every_byte() -> None:
    async def run(_: Bench, pair: Pair) -> None:
        message = binary(5.0)
        for at in range(1, len(message), 7 if ON_GPU else 1):  # as above: where it is cut is no engine's matter
            await ask_both(pair, [message, message[:at], message[at:], message])
        assert pair[0].skipped > len(message) // (7 if ON_GPU else 1)

    with_pair(run)


def test_a_changed_head_in_between_and_pipelined_calls() -> None:
    async def run(_: Bench, pair: Pair) -> None:
        mine, yours = (binary(2.0, headers=(f"X-Request-Id: {name}",)) for name in ("mine", "your"))
        assert len(mine) == len(yours)
        await ask_both(pair, [mine, mine, mine, yours, mine, mine * 3, mine, LIVE, mine + LIVE, mine])
        assert re.findall(rb"x-request-id: (\w+)", pair[0].said) == [b"mine"] * 3 + [b"your"] + [b"mine"] * 7
        assert pair[0].skipped >= 3

    with_pair(run)


def test_a_body_that_looks_like_the_end_of_a_head_is_not_taken_for_one() -> None:
    """Its empty lines, and those behind it, could make a longer head of the same bytes."""

    async def run(_: Bench, pair: Pair) -> None:
        tricky = post("m", b"\r\n") + b"\r\n"
        await ask_both(pair, [post("m", b"{}"), tricky, tricky, tricky, post("m", b"\r\n"), binary(1.0)])

    with_pair(run)


def test_no_room_for_a_known_call_is_answered_as_for_any_other() -> None:
    async def run(bench: Bench, pair: Pair) -> None:
        for one in pair:
            await one.send([binary(1.0)] * 3, await_each=True)
        another = Hold(bench.handler.room)
        another.take(bench.handler.room.limit_bytes)
        await ask_both(pair, [binary(1.0), binary(1.0)])
        another.release()
        assert pair[0].skipped == 2
        assert b"Exceeds maximum queue size: the server holds" in pair[0].wire.written
        assert pair[0].wire.written.endswith(b"<EOF>")
        assert pair[0].wire.written.count(b"HTTP/1.1") == 4, "what comes behind it is dropped"
        assert bench.handler.room.held_bytes == 0

    with_pair(run)


def test_a_client_that_leaves_withdraws_a_known_call() -> None:
    async def run(bench: Bench, pair: Pair) -> None:
        for one in pair:
            await one.send([binary(1.0, model="patient")] * 2, await_each=True)
            one.protocol.data_received(binary(1.0, model="patient"))
            assert (one.protocol._waits_for, bench.handler.in_flight) == ("answer", 1)
            one.protocol.connection_lost(None)
            assert bench.handler.in_flight == 0
            assert bench.handler.room.held_bytes == 0
        assert pair[0].skipped == 1

    with_pair(run)


def test_long_heads_are_not_kept() -> None:
    async def run(_: Bench, pair: Pair) -> None:
        await ask_both(pair, [binary(1.0, headers=("X: " + "a" * 4000,))] * 4)
        assert pair[0].skipped == 0
        assert pair[0].protocol._known is None

    with_pair(run)
