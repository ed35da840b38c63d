"""A server of several processes: what is lost with one of them, what is shared by all, and how they end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.hostile.wire import (
    Client,
    assert_serves,
    binary_body,
    cancelled,
    json_body,
    metric,
    post,
    repository,
    short_post,
    wait_in_flight,
)
from tests.support import fronts
from tests.support.onnx_models import slow
from tests.support.servers import ROOT, Server, running, until
from tests.support.uploads import build_of, ended, send

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(repository(), "--front-ends", "2", *getattr(request, "param", ()))
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture
def clients_of(server: Server) -> Iterator[fronts.Clients]:
    clients = fronts.Clients(server)
    yield clients
    clients.close()


def served(server: Server) -> bool:
    with contextlib.suppress(ConnectionError, TimeoutError), Client(server.port) as client:
        return client.ask(short_post("m")).status == 200
    return False


def both_up(server: Server) -> bool:
    return len(fronts.front_ends_of(server)) == 2 and len(psutil.Process(server.process.pid).children()) == 3


@pytest.mark.parametrize("server", [("--delay-scheduler", "4")], indirect=True)
def test_one_batch_has_rows_of_both_front_ends_and_each_gets_its_own(server, clients_of):
    clients = [client for owned in clients_of(2).values() for client in owned]
    for value, client in enumerate(clients):
        client.send(short_post("m", value))
    for value, client in enumerate(clients):
        assert client.read().json()["outputs"][0]["data"] == [2.0 * value] * 16
    (stats,) = httpx.get(f"{server.url}/v2/models/m/stats").json()["model_stats"]
    assert {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]} == {4: 1}


def test_counters_are_those_of_both_and_are_kept_when_one_is_killed(server, clients_of):
    for clients in clients_of(1).values():
        assert [clients[0].ask(short_post("m")).status for _ in range(5)] == [200] * 5
        assert clients[0].ask(post("m", json_body(width=3))).status == 400
        assert clients[0].ask(post("m", b"no json")).status == 400
    names = ("nv_inference_request_success", "nv_inference_count", "nv_inference_request_failure")
    assert [metric(server, name, model="m") for name in names] == [10, 10, 4]
    seconds = "bitserve_request_duration_seconds"
    assert metric(server, f"{seconds}_count", model="m", outcome="success") == 10
    assert metric(server, f"{seconds}_bucket", model="m", outcome="rejected", le="+Inf") == 4
    assert 0 < metric(server, f"{seconds}_sum", model="m", outcome="success") < 10
    fronts.front_ends_of(server)[0].kill()
    until(lambda: both_up(server), "started again")
    assert [metric(server, name, model="m") for name in names] == [10, 10, 4]


def test_no_two_requests_have_one_id(server, clients_of):
    clients = [client for owned in clients_of(1).values() for client in owned]
    found = [client.ask(short_post("m")).headers["x-request-id"] for client in clients for _ in range(20)]
    assert len(set(found)) == 40


@pytest.mark.parametrize("server", [("--delay-scheduler", "3")], indirect=True)
def test_a_front_end_that_is_killed_loses_its_own_connections_and_is_started_again(server, clients_of):
    (first, mine), (_, others) = clients_of(2).items()
    for client in (*mine, others[0]):  # all three would run: but two of them go, and take nobody with them
        client.send(short_post("m", 5) if client is others[0] else short_post("patient"))
    wait_in_flight(server, "patient", 2)
    wait_in_flight(server, "m", 1)
    os.kill(first, signal.SIGKILL)
    until(lambda: cancelled(server, "patient") == 2, "their requests are withdrawn")
    assert mine[0].ended()
    others[1].send(short_post("m", 6))
    until(lambda: both_up(server), "started again")
    with Client(server.port) as client:
        client.send(short_post("m", 7))
        for value, asked in ((5, others[0]), (6, others[1]), (7, client)):
            assert asked.read().json()["outputs"][0]["data"] == [2.0 * value] * 16
    assert sorted(clients_of(1)) == sorted(child.pid for child in fronts.front_ends_of(server))
    assert_serves(server)


NO_FORK = """
import errno, os
fork = os.fork
def refused():
    if os.path.exists(os.environ["NO_FORK"]):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = refused
"""


def test_while_no_process_can_be_made_the_others_serve_on_and_it_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_FORK)  # Python runs it as it starts
    full = tmp_path / "full"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = Server(repository(), "--front-ends", "2", env={"PYTHONPATH": path, "NO_FORK": str(full)})
    clients = fronts.Clients(server)
    try:
        server.wait_ready()
        connected = clients(1)
        full.touch()
        gone, kept = fronts.front_ends_of(server)
        gone.kill()
        said = "cannot be started: Resource temporarily unavailable"
        until(lambda: any(said in line for line in list(server.log)), "what stands in the way")
        assert fronts.front_ends_of(server) == [kept]
        assert connected[kept.pid][0].ask(short_post("m")).status == 200
        full.unlink()
        until(lambda: both_up(server), "the front end")
        assert all(client.ask(short_post("m")).status == 200 for (client,) in clients(1).values())
    finally:
        clients.close()
        server.stop()


@pytest.mark.parametrize("server", [("--delay-scheduler", "3")], indirect=True)
def test_an_engine_process_that_is_killed_costs_503_until_it_is_back(server, clients_of):
    clients = [client for (client,) in clients_of(1).values()]
    for client in clients:
        client.send(short_post("m"))
    wait_in_flight(server, "m", 2)
    fronts.engine_of(server).kill()
    for client in clients:
        reply = client.read()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert "engine process has ended" in reply.error
        assert client.ask(LIVE).status in (200, 503), "the connection is open still"
    until(server.alive, "live again")
    server.wait_ready()
    with Client(server.port) as last:  # what it serves now is known on the connections of before
        for value, client in enumerate((*clients, last)):
            client.send(short_post("m", value))
        for value, client in enumerate((*clients, last)):
            assert client.read().json()["outputs"][0]["data"] == [2.0 * value] * 16


def test_a_build_goes_on_in_the_next_engine_process(tmp_path):
    with running(tmp_path, "--front-ends", "2") as server:
        sent = send(server, "large", slow(width=256, layers=12).SerializeToString())
        until(lambda: build_of(server, sent)["state"] == "running", "it runs")
        fronts.engine_of(server).kill()
        until(lambda: both_up(server) and server.alive(), "live again")
        done = ended(server, sent)
        assert (done["state"], done["version"], done["attempts"]) == ("succeeded", 1, 2)
        until(lambda: server.state("large") == "READY", "it is served")


def test_while_there_is_no_engine_every_request_is_told_so(server, clients_of):
    (client,) = next(iter(clients_of(1).values()))
    engine = fronts.engine_of(server)
    before = {child.pid for child in fronts.front_ends_of(server)}
    os.kill(server.process.pid, signal.SIGSTOP)  # nobody starts another one
    try:
        engine.kill()
        until(lambda: client.ask(short_post("m")).status == 503, "no engine")
        for request in (short_post("m"), LIVE, post("nope", b"{}")):
            reply = client.ask(request)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert "engine process has ended" in reply.error
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    until(lambda: client.ask(LIVE).status == 200, "live again")
    server.wait_ready()
    assert client.ask(short_post("m", 4)).json()["outputs"][0]["data"] == [8.0] * 16
    assert {child.pid for child in fronts.front_ends_of(server)} == before


def test_clients_that_leave_are_withdrawn_from_the_engine(server, clients_of):
    owned = clients_of(2)
    for clients in owned.values():
        for client in clients:
            client.send(short_post("patient"))
    wait_in_flight(server, "patient", 4)
    for clients in owned.values():
        clients[0].socket.close()
    until(lambda: cancelled(server, "patient") == 2, "those of the clients that left are withdrawn")
    for clients in owned.values():
        assert clients[1].read().status == 200
    assert metric(server, "nv_inference_count", model="patient") == 2


def test_a_deadline_passes_in_the_engine_and_is_told_by_the_front_end(server, clients_of):
    for (client,) in clients_of(1).values():
        reply = client.ask(short_post("patient", parameters={"timeout": 1000}))
        assert (reply.status, reply.error) == (503, "Request timeout expired")
    assert metric(server, "bitserve_request_duration_seconds_count", model="patient", outcome="expired") == 2


@pytest.mark.parametrize("server", [("--max-connections", "3")], indirect=True)
def test_connections_are_bounded_in_all_front_ends_together(server):
    clients = []
    while len(clients) < 3:
        client = Client(server.port)
        if client.ask(LIVE).status == 200:
            clients.append(client)
    for _ in range(8):  # whichever front end they come to
        with Client(server.port) as extra:
            reply = extra.read()
            assert reply.status == 503
            assert "3 open connections" in reply.error
    for client in clients:
        assert client.ask(LIVE).status == 200
        client.socket.close()
    until(lambda: served(server), "room again")


def asked_anew(server: Server) -> int:
    """The status of a large request that waits for leave to send its body: so it takes no room from others here."""
    with Client(server.port) as client:
        return (
            client.send(post("m", b"", ["Expect: 100-continue", "Content-Length: 100000"], length=False)).read().status
        )


@pytest.mark.parametrize("server", [("--max-held-bytes", "200000")], indirect=True)
def test_bodies_are_bounded_in_all_front_ends_together(server, clients_of):
    (one,), _ = clients_of(1).values()
    one.send(post("m", b"x" * 150_000)[:-1])
    until(lambda: asked_anew(server) == 503, "the first is held", 20)
    reply = one.send(b"x").read()
    assert reply.status == 400
    until(lambda: asked_anew(server) == 100, "room again", 20)
    with Client(server.port) as client:
        assert client.ask(post("m", b"{" * 100_000)).status == 400


def test_answers_larger_than_expected_come_whole(server):
    """`sizes` says nothing of its outputs before a run; `wide` has 256 KB a row."""
    inputs = {
        "X": ("FP32", np.full((1, 1), 7.0)), "shape": ("INT64", np.array([64, 64])), "count": ("INT64", np.array([3])),
        "V": ("FP32", np.arange(12.0)),
    }  # fmt: skip
    for _ in range(6):
        outputs = {entry["name"]: entry for entry in server.infer("sizes", inputs).json()["outputs"]}
        assert outputs["Y"]["shape"] == [64, 64]
        assert outputs["Y"]["data"] == [7.0] * 4096
        assert outputs["R"]["data"] == [0, 1, 2]
        assert outputs["Z"]["data"] == list(np.arange(12.0))
    body, length = binary_body(np.array([[2.0], [3.0]], np.float32))
    with Client(server.port) as client:
        reply = client.ask(post("wide", body, [length]))
    data = np.frombuffer(reply.body[int(reply.headers["inference-header-content-length"]) :], np.float32)
    np.testing.assert_array_equal(data.reshape(2, -1), np.outer([2, 3], np.arange(65536)))


def test_traffic_goes_on_while_front_ends_and_the_engine_are_killed(server):
    """Whatever is answered with 200 is right, and everything is answered again afterwards."""
    stop = []

    def drive(value: float) -> int:
        good = 0
        while not stop:
            with contextlib.suppress(OSError), Client(server.port) as client:
                while not stop:
                    reply = client.ask(short_post("m", value))
                    assert reply.status in (200, 503, 404), reply
                    if reply.status == 200:
                        assert reply.json()["outputs"][0]["data"] == [2 * value] * 16
                        good += 1
        return good

    with ThreadPoolExecutor(8) as pool:
        drivers = [pool.submit(drive, float(value)) for value in range(8)]
        try:
            for _ in range(3):
                fronts.front_ends_of(server)[0].kill()
                until(lambda: both_up(server), "started again")
                fronts.engine_of(server).kill()
                until(lambda: both_up(server) and served(server), "serves again", 60)
        finally:
            stop.append(True)
        assert all(driver.result(60) > 0 for driver in drivers)
    assert_serves(server)


def test_children_end_with_a_supervisor_that_is_killed(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 3
    server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_server_that_is_told_to_end_while_it_starts_ends(tmp_path):
    command = [sys.executable, "-m", "app", "serve", "--repository", str(tmp_path), "--port", "0", "--front-ends", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT) as starting:
        first = psutil.Process(starting.pid)
        until(lambda: len(first.children()) == 3, "it has forked", every_s=0.001)
        children = first.children()
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(30) == 0
        assert not psutil.wait_procs(children, timeout=1)[1]


def test_front_ends_load_no_engine(server):
    for child in fronts.front_ends_of(server):
        assert not [found.path for found in child.memory_maps() if "openvino" in found.path]
    assert [found.path for found in fronts.engine_of(server).memory_maps() if "openvino" in found.path]


def test_a_second_server_cannot_share_the_port(server):
    command = [sys.executable, "-m", "app", "serve", "--repository", str(repository()), "--port", str(server.port)]
    for front_ends in ("1", "2"):
        second = subprocess.run([*command, "--front-ends", front_ends], capture_output=True, timeout=60, check=False)
        assert second.returncode != 0
        assert b"is in use" in second.stderr


@pytest.mark.parametrize("door", ["links", "http"])
def test_nobody_else_of_the_machine_speaks_to_the_engine(server, door):
    """The address of its sockets is known to all; whom it listens to is decided by the user who speaks."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    names = [line.split()[-1] for line in sockets if f"bitserve-{server.process.pid}-" in line]
    (name,) = {name for name in names if name.endswith(f"-{door}")}
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        f"s.settimeout(20); s.connect('\\0{name[1:]}');"
        "sys.exit(0 if s.recv(1) == b'' else 1)"  # before a word was said
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    assert_serves(server)


def test_refusals_need_no_engine(server, clients_of):
    """What is wrong with a request's head or size is said all the same, in its turn, and costs nobody else anything."""
    (one,), (other,) = clients_of(1).values()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        fronts.engine_of(server).kill()
        until(lambda: other.ask(short_post("m")).status == 503, "no engine")
        one.send(post("m", b"x").replace(b"Content-Length: 1", b"Content-Length: 999999999"))
        assert one.read().status == 413
        assert one.ended()
        oversized = post("m", b"x").replace(b"Content-Length: 1", b"Content-Length: 999999999")
        other.send(LIVE + oversized)
        assert other.read().status == 503
        assert other.read().status == 413
        assert other.ended()
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    until(lambda: served(server), "serves again", 60)


def test_an_expectation_that_means_nothing_is_not_waited_for(server):
    with Client(server.port, timeout_s=10) as client:
        reply = client.ask(post("/v2/repository/index", b"{}", ["Expect: 200-ok"]))
        assert reply.status == 200
        client.send(post("/v2/repository/index", b"", ["Expect: 100-continue"], length=False)[:-2])
        client.send(b"Content-Length: 2\r\n\r\n")
        assert client.read().status == 100
        assert client.ask(b"{}").status == 200
