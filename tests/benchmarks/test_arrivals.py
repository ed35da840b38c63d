"""The open loop: requests go out when they are due, latency counts from then, and failures are counted."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.open_loop import open_loop
from benchmarks.peers.arrivals import Arrived, arrivals, as_fast_as_answered, poisson
from benchmarks.wrk import Expected, Sent
from tests.benchmarks.faulty import CUT, Answer, Call, serving

SENT = [Sent(f"/{number % 2}", b"%d\n\0" % number * 40, {"X-Number": str(number)}) for number in range(16)]
ANY = Expected(0, 1 << 30, every=1, keep=1000)


def run(answer: Answer, folder: Path, due_s: np.ndarray, connections: int = 4) -> tuple[Arrived, list[Call]]:
    with serving(answer) as (base, calls):
        return arrivals(base, SENT, due_s, folder, connections, ANY), calls


def echo(number: int, call: Call) -> tuple[int, bytes]:
    return 200, call.body


def test_every_request_is_answered_in_rotation_and_kept(tmp_path: Path) -> None:
    found, calls = run(echo, tmp_path, np.linspace(0, 0.2, 48))
    assert (found.requests, found.failures) == (48, 0)
    assert sorted(calls) == sorted([Call(one.path, one.body) for one in SENT] * 3)
    assert sorted(found.kept) == sorted([one.body for one in SENT] * 3)
    assert 0 < found.p50_ms <= found.p99_ms


def test_requests_keep_their_rate(tmp_path: Path) -> None:
    found, _ = run(echo, tmp_path, np.linspace(0, 1, 51))
    assert found.requests_per_s == pytest.approx(50, rel=0.2)
    assert found.p50_ms < 500


def test_a_request_that_waits_for_a_slow_one_is_charged_from_when_it_was_due(tmp_path: Path) -> None:
    """One connection, the first answer held for 300 ms: those behind it were due at once, and waited as long."""
    held = threading.Event()

    def slow(number: int, call: Call) -> tuple[int, bytes]:
        if number == 0:
            held.wait(0.3)
        return 200, call.body

    found, calls = run(slow, tmp_path, np.array([0.0, 0.001, 0.002, 0.003]), connections=1)
    assert len(calls) == 4
    assert found.p50_ms > 290
    assert found.late_p99_ms > 290, "and they could not be sent earlier"


def test_failures_are_counted(tmp_path: Path) -> None:
    statuses = {3: 503, 7: CUT, 11: 302}
    found, _ = run(lambda number, call: (statuses.get(number, 200), call.body), tmp_path, np.linspace(0, 0.1, 32))
    assert (found.requests, found.failures) == (32, 3)


def test_an_answer_of_another_length_is_a_failure(tmp_path: Path) -> None:
    with serving(lambda number, call: (200, call.body[: 100 if number == 5 else None])) as (base, _):
        found = arrivals(base, SENT, np.linspace(0, 0.1, 20), tmp_path, 4, Expected(120, 160))
    assert found.failures == 1


def test_a_large_body_goes_out_in_pieces_and_comes_back_whole(tmp_path: Path) -> None:
    large = [Sent("/", bytes([number]) * 20_000_000, {}) for number in range(2)]
    with serving(echo) as (base, _):
        found = arrivals(base, large, as_fast_as_answered(4), tmp_path, 2, ANY)
    assert found.failures == 0
    assert sorted(found.kept) == sorted([one.body for one in large] * 2)


def test_a_server_that_is_not_there_is_no_result(tmp_path: Path) -> None:
    with serving(echo) as (base, _):
        pass
    with pytest.raises(RuntimeError, match="refused"):
        arrivals(base, SENT, np.zeros(3), tmp_path, 1, ANY)


def test_it_says_what_the_slow_twin_says(tmp_path: Path) -> None:
    """A server that takes 20 ms for an answer: what a client adds to that is small beside it, native or in Python."""
    never = threading.Event()

    def slow(number: int, call: Call) -> tuple[int, bytes]:
        never.wait(0.02)
        return 200, call.body

    with serving(slow) as (base, _):
        native = arrivals(base, SENT, poisson(100, 1.5), tmp_path, 32, ANY)
        in_python = open_loop(f"{base}/0", (SENT[0].body, SENT[0].headers), 100, 1.5)
    assert native.failures == in_python.failures == 0
    assert native.requests == in_python.requests == 150
    assert native.p50_ms == pytest.approx(in_python.p50_ms, rel=0.35)


def test_arrivals_are_poisson_and_seeded() -> None:
    due_s = poisson(1000, 20)
    gaps = np.diff(due_s)
    assert np.array_equal(due_s, poisson(1000, 20))
    assert len(due_s) == 20_000
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as exponential gaps have it"
