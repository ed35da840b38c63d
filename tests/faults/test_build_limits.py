"""How many builds wait, how many are remembered, and what makes room: the limits hold however uploads come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.builds.state import BuildState, Progress
from app.builds.store import BuildStore
from tests.faults.test_killed_builds import put
from tests.hostile.wire import Client
from tests.support.onnx_models import linear, slow
from tests.support.servers import ADMIN, TOKEN, Server, running, until
from tests.support.uploads import build_of, ended, send

pytestmark = [pytest.mark.asks_no_engine, pytest.mark.asks_the_compiler]
KIB = 1024


def scaled(scale: float) -> bytes:
    return linear(scale=scale).SerializeToString()


def models(server: Server) -> list[str]:
    return [build["model"] for build in httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()]


def opening(model: str, size_bytes: int) -> bytes:
    """The head of an upload of so many bytes."""
    return (
        f"POST /v2/repository/models/{model}/compile HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {size_bytes}\r\n\r\n"
    ).encode()


def body(data: bytes) -> bytes:
    head = b'--B\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'
    return head + data + b"\r\n--B--\r\n"


def arriving(server: Server) -> int:
    return len(list((server.repository / ".builds").glob(".*.staging")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--max-queued-builds", "2", "--keep-builds", "2", "--max-builds-bytes", "8000000")
    with running(tmp_path_factory.mktemp("repository"), *flags) as live:
        yield live


def test_no_more_finished_builds_are_kept_than_asked(server: Server) -> None:
    for number in range(4):
        assert ended(server, send(server, f"m{number}", scaled(number + 2)))["state"] == "succeeded"
    assert models(server) == ["m2", "m3"]


def test_what_can_never_fit_removes_nothing(server: Server) -> None:
    before = models(server)
    assert before
    with Client(server.port) as client:
        answer = client.send(opening("huge", 500_000_000)).read()
    assert (answer.status, "see setting max_builds_bytes" in answer.json()["error"]) == (503, True)
    assert models(server) == before


def test_uploads_that_arrive_together_are_counted(server: Server) -> None:
    """All of them begin before one has ended: no more are let in than may wait."""
    running_one = send(server, "slow", slow(width=256, layers=12).SerializeToString())
    until(lambda: build_of(server, running_one)["state"] == "running", "it runs")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(6)]
        bodies = [body(scaled(40 + number)) for number in range(6)]
        for number, (client, data) in enumerate(zip(clients, bodies, strict=True)):
            client.send(opening(f"slow{number}", len(data)) + data[:50])
            until(lambda number=number: arriving(server) == min(number + 1, 2), "the upload has begun, if it may")
        for client in clients[2:]:
            answer = client.read()
            assert (answer.status, "see setting max_queued_builds" in answer.json()["error"]) == (503, True)
        for client, data in zip(clients[:2], bodies[:2], strict=True):
            client.send(data[50:])
        assert [client.read().status for client in clients[:2]] == [202, 202]
        late = send(server, "late", scaled(50))
        assert (late.status_code, "2 builds wait or arrive already" in late.text) == (503, True)
    for build in httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json():
        httpx.delete(f"{server.url}/v2/builds/{build['id']}", headers=ADMIN)


def test_a_client_that_leaves_is_a_line_in_the_log_and_no_error(server: Server) -> None:
    data = body(scaled(60))
    for leave in (Client.reset, lambda client: client.socket.close()):
        with Client(server.port) as client:
            client.send(opening("left", len(data)) + data[:50])
            until(lambda: arriving(server) == 1, "the upload has begun")
            leave(client)
        until(lambda: arriving(server) == 0, "nothing of it is left")
    said = [event for event in server.log_events() if "its client left" in event["message"]]
    assert [event["level"] for event in said] == ["INFO", "INFO"]
    assert not [line for line in server.log if "Traceback" in line or '"ERROR"' in line]


def finished(store: BuildStore, number: int, size_bytes: int) -> str:
    build = f"20260101-000000-000000-{number:08x}"
    put(store, build, f"m{number}", bytes(size_bytes))
    store.write_progress(build, Progress(state=BuildState.SUCCEEDED))
    return build


def test_room_is_made_by_the_oldest_and_by_no_more_than_needed(tmp_path: Path) -> None:
    store = BuildStore(tmp_path)
    builds = [finished(store, number, 100 * KIB) for number in range(4)]
    waiting = "20260101-000000-000000-ffffffff"
    put(store, waiting, "waits", bytes(100 * KIB))
    limit = 600 * KIB
    assert store.make_room(50 * KIB, limit)
    assert store.ids() == [*builds, waiting]
    assert store.make_room(150 * KIB, limit)
    assert store.ids() == [*builds[1:], waiting]
    assert not store.make_room(550 * KIB, limit), "the one that waits is in the way"
    assert not store.make_room(700 * KIB, limit)
    assert store.ids() == [*builds[1:], waiting]
    assert store.make_room(450 * KIB, limit)
    assert store.ids() == [waiting]


def test_the_one_that_ended_just_now_is_kept_however_old(tmp_path: Path) -> None:
    store = BuildStore(tmp_path)
    builds = [finished(store, number, KIB) for number in range(4)]
    store.retain(3, spare=builds[0])
    assert store.ids() == [builds[0], builds[2], builds[3]]
    store.retain(0, spare=builds[0])
    assert store.ids() == [builds[0]]
    store.retain(0)
    assert store.ids() == []


def test_ids_sort_in_the_order_they_were_given(tmp_path: Path) -> None:
    """Within a microsecond, by another process, and after the clock was set back."""
    store = BuildStore(tmp_path)
    ids = [store.new_id() for _ in range(500)]
    assert ids == sorted(ids)
    ahead = "29991231-235959-999999-ffffffff"
    put(store, ahead, "m")
    assert BuildStore(tmp_path).new_id() > ahead
    put(store, "20269999-000000-000000-00000000", "named by hand, at no time")
    assert store.new_id() > ids[-1]
