"""The driver against servers that behave, and that do not."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from app.bench.alarm import Alarm
from app.bench.arrivals import Closed, Open, Plan
from app.bench.driver import Address, Driver, run
from app.bench.rotation import Rotation
from app.bench.seen import Seen
from tests.bench.servers import OK, Answer, reply, served
from tests.support.servers import free_port

MS = 1_000_000
REQUESTS = [b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d" % (number, number) for number in range(3)]


def drive(answer: Answer, plan: Plan, connections: int = 2, timeout_s: float = 5.0) -> tuple[Seen, Driver]:
    """What the driver saw of a server that answers so."""
    return drive_with(answer, lambda driver, seen: driver.run(plan, seen), connections, timeout_s)


def drive_with(
    answer: Answer, work: Callable[[Driver, Seen], Awaitable[object]], connections: int = 2, timeout_s: float = 5.0,
    check: Callable[[int, bytes], str] = lambda index, body: "",
) -> tuple[Seen, Driver]:  # fmt: skip
    async def go() -> tuple[Seen, Driver]:
        seen = Seen()
        async with served(answer) as address:
            driver = Driver(address, Rotation(REQUESTS, rows=4), connections, timeout_s, check)
            try:
                await work(driver, seen)
            finally:
                await driver.close()
        return seen, driver

    found: tuple[Seen, Driver] = run(go())
    return found


def always(*pieces: bytes) -> Answer:
    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


def failures(seen: Seen) -> dict[str, tuple[int, str]]:
    return {what: (failure.count, failure.said) for what, failure in seen.failures.items()}


def dues(*due_ms: float) -> Open:
    return Open(array("q", [round(ms * MS) for ms in due_ms]), window_ns=None, patience_ns=5000 * MS)


def test_a_number_of_requests_in_rotation_on_kept_connections() -> None:
    bodies: list[bytes] = []
    writers: set[asyncio.StreamWriter] = set()

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        writers.add(writer)
        writer.write(OK)

    seen, driver = drive(answer, Closed(requests=50))
    assert (len(seen.latencies_ns), seen.in_time, seen.rows, failures(seen)) == (50, 50, 200, {})
    assert sorted(bodies) == sorted([b"0", b"1", b"2"] * 16 + [b"0", b"1"])
    assert len(writers) == 2
    assert min(seen.latencies_ns) > 0
    assert not driver.gone


@pytest.mark.parametrize("concurrency", [1, 5])
def test_as_many_are_under_way_as_asked_and_no_more(concurrency: int) -> None:
    waiting: list[asyncio.StreamWriter] = []
    most = 0

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        waiting.append(writer)
        most = max(most, len(waiting))
        if len(waiting) == concurrency:  # nobody is answered before all are here: fewer would wait for ever
            for one in waiting:
                one.write(OK)
            waiting.clear()

    seen, _ = drive(answer, Closed(requests=5 * concurrency), connections=concurrency)
    assert (most, len(seen.latencies_ns), failures(seen)) == (concurrency, 5 * concurrency, {})


def test_a_time_ends_it_and_answers_after_it_count_as_latency_alone() -> None:
    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if number == 2:
            await asyncio.sleep(0.3)
        writer.write(OK)

    seen, _ = drive(answer, Closed(seconds=0.2), connections=1)
    assert max(seen.latencies_ns) >= 290 * MS
    assert (len(seen.latencies_ns), seen.in_time, failures(seen)) == (3, 2, {})


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((reply(b'{"error":"full\\u0007"}', "503 Unavailable"),), {"503": (3, "full\a")}),
        ((reply(b"<h1>no</h1>", "404 Not Found"),), {"404": (3, "<h1>no</h1>")}),
        ((reply(b"", "204 No Content"),), {"204": (3, "")}),
        ((reply(b"no"),), {"wrong answer": (3, "not ok")}),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), {}),
        ((OK[:20], OK[20:-1], OK[-1:]), {}),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), {}),
        ((reply(headers="Connection: close\r\n"),), {}),
        ((b"SSH-2.0-x\r\n",), {"connection lost": (3, "an answer was no HTTP")}),
    ],
)
def test_answers(pieces: tuple[bytes, ...], expected: dict[str, tuple[int, str]]) -> None:
    seen, _ = drive_with(
        always(*pieces), lambda driver, seen: driver.run(Closed(requests=3), seen), connections=1,
        check=lambda index, body: "" if body == b"ok" else "not ok",
    )  # fmt: skip
    assert failures(seen) == expected
    assert len(seen.latencies_ns) == (0 if expected else 3)


def test_a_connection_that_is_lost_is_one_failure_and_another_takes_its_place() -> None:
    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[: len(OK) if number % 4 else 25])
        if not number % 4:
            writer.close()

    seen, _ = drive(answer, Closed(requests=20))
    assert [*failures(seen)] == ["connection lost"]
    assert (seen.failures["connection lost"].count, len(seen.latencies_ns)) == (5, 15)


@pytest.mark.parametrize("plan", [Closed(requests=6), dues(0, 1, 2, 3, 4, 5)])
def test_a_server_that_takes_no_more_connections(plan: Plan) -> None:
    """It says so to each that comes, and closes it, asked or not."""
    full = reply(b'{"error":"too many"}', "503 Unavailable", "Connection: close\r\n")

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full)
        writer.close()

    async def go() -> Seen:
        seen = Seen()
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            driver = Driver(Address(*server.sockets[0].getsockname()), Rotation(REQUESTS, 1), 4, 5.0)
            await asyncio.wait_for(driver.run(plan, seen), 30)
            await driver.close()
        return seen

    seen = run(go())
    assert len(seen.latencies_ns) == 0
    assert set(seen.failures) <= {"503", "connection lost", "not sent"}
    assert sum(failure.count for failure in seen.failures.values()) == 6


def test_what_takes_too_long_has_failed() -> None:
    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if number:
            writer.write(OK)

    seen, _ = drive(answer, Closed(requests=5), connections=1, timeout_s=0.2)
    assert failures(seen) == {"timeout": (1, "")}
    assert len(seen.latencies_ns) == 4


def test_no_server_at_all_ends_it() -> None:
    async def go() -> tuple[Seen, Driver]:
        seen, driver = Seen(), Driver(Address("127.0.0.1", free_port()), Rotation(REQUESTS, 1), 2, 5.0, gone_s=0.2)
        await driver.run(Closed(seconds=60), seen)
        return seen, driver

    seen, driver = run(go())
    assert driver.gone
    assert [*seen.failures] == ["no connection"]
    assert "refused" in seen.failures["no connection"].said


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """A server that stalls: what was due meanwhile counts from when it was due, though there is one connection."""
    stalled_ms = 300

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        if not number:
            await asyncio.sleep(stalled_ms / 1000)
        writer.write(OK)

    due_ms = [0.0, 20.0, 50.0, 100.0, 200.0]
    seen, _ = drive(answer, dues(*due_ms), connections=1)
    assert failures(seen) == {}
    assert all(
        latency_ns >= (stalled_ms - due) * MS - MS for latency_ns, due in zip(seen.latencies_ns, due_ms, strict=True)
    )
    closed, _ = drive(answer, Closed(requests=5), connections=1)
    assert max(closed.latencies_ns[1:]) < 100 * MS, "the loop that waits sees one slow request alone"


def test_an_open_loop_sends_when_requests_are_due_and_opens_connections_as_it_needs_them() -> None:
    begun_ms: list[float] = []
    waiting: list[asyncio.StreamWriter] = []

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        begun_ms.append(time.monotonic_ns() / MS)
        waiting.append(writer)
        if len(waiting) == 40:  # all are under way at once, more than were opened before
            for one in waiting:
                one.write(OK)

    class Noted(Open):
        def begin(self, now_ns: int) -> None:
            super().begin(now_ns)
            self.begun_ms = now_ns / MS

    due_ms = [number * 2.5 for number in range(40)]
    plan = Noted(array("q", [round(due * MS) for due in due_ms]), window_ns=None, patience_ns=5000 * MS)
    seen, _ = drive(answer, plan, connections=64)
    assert (len(seen.latencies_ns), failures(seen), len(seen.lates_ns)) == (40, {}, 40)
    arrived_ms = [moment - plan.begun_ms for moment in begun_ms]
    assert all(moment >= due for moment, due in zip(arrived_ms, due_ms, strict=True)), "none before it is due"
    assert min(seen.lates_ns) >= 0


def test_requests_that_no_connection_is_free_for_are_told() -> None:
    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.25)
        writer.write(OK)

    plan = Open(array("q", [0, MS, 2 * MS]), window_ns=None, patience_ns=100 * MS)
    seen, _ = drive(answer, plan, connections=1)
    assert len(seen.latencies_ns) == 1
    assert seen.failures["not sent"].count == 2


@pytest.mark.parametrize("plan", [Closed(seconds=60), Open(array("q", [0, 1, 60_000 * MS]), None, 0)])
def test_it_can_be_stopped(plan: Plan) -> None:
    answered = asyncio.Event()

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        if number:
            answered.set()

    async def work(driver: Driver, seen: Seen) -> None:
        running = asyncio.create_task(driver.run(plan, seen))  # type: ignore[arg-type]
        await answered.wait()
        driver.stop()
        await running

    seen, _ = drive_with(answer, work)
    assert len(seen.latencies_ns) >= 1
    assert failures(seen) == {}


def test_a_second_run_goes_on_with_the_connections() -> None:
    writers: set[asyncio.StreamWriter] = set()

    async def answer(number: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(OK)

    async def work(driver: Driver, seen: Seen) -> None:
        await driver.run(Closed(requests=5), Seen())
        await driver.run(dues(0, 1, 2, 3), seen)

    seen, _ = drive_with(answer, work)
    assert (len(seen.latencies_ns), len(writers)) == (4, 2)


def test_what_was_seen_is_told_in_increments() -> None:
    here, there = Seen(), Seen()
    for number in range(1, 4):
        here.latencies_ns.extend([number] * number)
        here.lates_ns.append(number)
        here.failed("503", "full")
        here.rows = here.in_time = here.in_time_rows = number
        there.add(here.increment())
        assert there.latencies_ns == here.latencies_ns
        assert there.lates_ns == here.lates_ns
    assert failures(there) == {"503": (3, "full")}
    assert there.first_failure() == "503: full"


@pytest.mark.parametrize("exact", [True, False])
def test_an_alarm_rings_once_at_its_instant_or_after_it(exact: bool) -> None:
    async def go() -> list[int]:
        rang_ns, rung = [], asyncio.Event()

        def ring() -> None:
            rang_ns.append(time.monotonic_ns())
            rung.set()

        alarm = Alarm(ring, exact=exact)
        try:
            alarm.set(time.monotonic_ns() + 60_000 * MS)
            for after_ns in (3 * MS, 0, -5 * MS):
                rung.clear()
                due_ns = time.monotonic_ns() + after_ns
                alarm.set(due_ns)  # in place of the one before
                await asyncio.wait_for(rung.wait(), 5)
                assert rang_ns[-1] >= due_ns - (0 if exact else MS)
        finally:
            alarm.close()
        return rang_ns

    rang_ns = run(go())
    assert len(rang_ns) == 3
    assert all(one < other for one, other in pairwise(rang_ns))
