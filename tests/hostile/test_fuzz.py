"""Random requests over several connections at once: never a 5xx of ours, never a hang, never a server that grows."""

from __future__ import annotations

import random
import threading
import time

import psutil

from tests.hostile.fuzzing import Shot, draw
from tests.hostile.wire import Client, Reply, assert_serves, metric
from tests.support.servers import Server, until

FUZZ_S = 60.0
THREADS = 6
LIMIT_S = 10.0
"""Of one exchange: a hang is a TimeoutError."""

_SETTLED_SHOTS = 5000
"""After so many the server has met every kind of shot, and has the memory that it needs."""
_GROWTH_BYTES = 60_000_000
"""The engine raises on sizes that do not fit, which is the request's fault and answered 400."""
_NAMED_503 = ("queue", "timeout", "stopping")


class Gunner(threading.Thread):
    """One client. Its seed is its number, so that a failure can be fired again."""

    def __init__(self, port: int, number: int, until_s: float) -> None:
        super().__init__()
        self._port, self._until_s = port, until_s
        self._rng = random.Random(number)
        self._client: Client | None = None
        self.statuses: dict[int, int] = {}
        self.shots = 0
        self.failure: str | None = None

    def run(self) -> None:
        while time.monotonic() < self._until_s and self.failure is None:
            shot = draw(self._rng)
            try:
                self._fire(shot)
                self.shots += 1
            except (AssertionError, OSError, ValueError, KeyError) as error:
                self.failure = f"{type(error).__name__}: {error!s:.500} after {shot.data!r:.1500}"
        if self._client is not None:
            self._client.socket.close()

    def _fire(self, shot: Shot) -> None:
        if not shot.whole:
            self._fire_broken(shot)
            return
        if self._client is None:
            self._client = Client(self._port, LIMIT_S)
        reply = self._client.ask(shot.data)
        self._judge(reply)
        if reply.headers.get("connection") == "close":
            self._client.socket.close()
            self._client = None

    def _fire_broken(self, shot: Shot) -> None:
        """Send, say that no more comes, and judge whatever was answered."""
        with Client(self._port, LIMIT_S) as client:
            try:
                client.send(shot.data)
                if self._rng.random() < 0.1:
                    client.reset()
                    return
                client.half_close()
                while True:
                    self._judge(client.read())
            except (ConnectionError, BrokenPipeError):
                return

    def _judge(self, reply: Reply) -> None:
        self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
        if reply.status in (100, 200):
            return
        said = reply.error
        assert reply.status in (400, 404, 405, 413) or (
            reply.status == 503 and any(name in said.lower() for name in _NAMED_503)
        ), reply
        assert "Traceback" not in said
        assert ".py" not in said


def test_fuzz_of_infer(server: Server):
    process = psutil.Process(server.process.pid)
    until_s = time.monotonic() + FUZZ_S
    gunners = [Gunner(server.port, number, until_s) for number in range(THREADS)]
    for gunner in gunners:
        gunner.start()
    until(lambda: settled(gunners), f"{_SETTLED_SHOTS} shots", FUZZ_S)
    early_bytes = process.memory_info().rss
    for gunner in gunners:
        gunner.join(FUZZ_S + 3 * LIMIT_S)
        assert not gunner.is_alive(), "hangs"
    assert not [gunner.failure for gunner in gunners if gunner.failure]
    assert_serves(server)
    assert process.memory_info().rss - early_bytes < _GROWTH_BYTES
    total = {status: sum(g.statuses.get(status, 0) for g in gunners) for status in (200, 400, 404)}
    assert total[200] > 50
    assert total[400] > 100, f"the fuzz does not reach what it should: {total}"
    for model in ("rows", "sizes", "pictures", "controls"):
        assert metric(server, "nv_inference_request_success", model=model) > 50
        assert metric(server, "nv_inference_request_failure", model=model) > 50
    bad = [line for line in server.log if "Traceback" in line or '"level": "ERROR"' in line]
    assert not bad, bad[:3]


def settled(gunners: list[Gunner]) -> bool:
    return sum(gunner.shots for gunner in gunners) >= _SETTLED_SHOTS or any(gunner.failure for gunner in gunners)
