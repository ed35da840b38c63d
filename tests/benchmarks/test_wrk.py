"""wrk rotates its bodies, keeps some answers whole, and counts what no sound run has."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.wrk import Expected, Run, Sent, run_wrk
from tests.benchmarks.faulty import CUT, Answer, Call, serving

pytestmark = pytest.mark.usefixtures("wrk")
SENT = [Sent(f"/{number % 2}", b"%d\n\0" % number * 40, {"X-Number": str(number)}) for number in range(16)]


def run(answer: Answer, folder: Path, expected: Expected | None = None) -> tuple[Run, list[Call]]:
    cpu_s = iter((1.0, 3.0))
    with serving(answer) as (base, calls):
        return run_wrk(base, SENT, folder, lambda: next(cpu_s), 2, 1, expected), calls


def echo(number: int, call: Call) -> tuple[int, bytes]:
    return 200, call.body


def test_all_bodies_are_sent_in_rotation_and_answers_are_kept_as_they_came(tmp_path: Path) -> None:
    found, calls = run(echo, tmp_path, Expected(120, 160, every=5, keep=9))
    assert found.failures == 0
    assert found.requests > 32
    assert {call for call in calls} == {Call(one.path, one.body) for one in SENT}
    assert len(found.kept) == 9
    assert set(found.kept) <= {one.body for one in SENT}
    assert len(set(found.kept)) > 4, "every fifth of sixteen: not the same again and again"


def test_figures_are_of_the_run(tmp_path: Path) -> None:
    found, calls = run(echo, tmp_path)
    assert found.requests <= len(calls) <= found.requests + 2
    assert found.requests_per_s == pytest.approx(found.requests, rel=0.3), "in one second"
    assert found.cpu_s_per_request == 2.0 / found.requests
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.kept == ()


def test_an_answer_of_another_length_is_wrong(tmp_path: Path) -> None:
    found, _ = run(lambda number, call: (200, call.body + b"x" * 50 * (number == 7)), tmp_path, Expected(120, 160))
    assert (found.wrong, found.refused, found.broken) == (1, 0, 0)


def test_a_status_that_is_not_2xx_is_counted(tmp_path: Path) -> None:
    found, _ = run(lambda number, call: (503 if number in (3, 30) else 200, call.body), tmp_path)
    assert (found.wrong, found.refused, found.broken) == (0, 2, 0)


def test_a_redirection_is_wrong(tmp_path: Path) -> None:
    found, _ = run(lambda number, call: (302 if number == 3 else 200, call.body), tmp_path, Expected(120, 160))
    assert found.wrong == 1


def test_a_connection_that_breaks_is_counted(tmp_path: Path) -> None:
    found, _ = run(lambda number, call: (CUT if number == 5 else 200, call.body), tmp_path)
    assert found.broken == 1
    assert found.failures == 1


def test_a_server_that_is_not_there_says_so(tmp_path: Path) -> None:
    with serving(echo) as (base, _):
        pass
    with pytest.raises(RuntimeError, match="refused"):
        run_wrk(base, SENT, tmp_path, lambda: 0.0, 2, 1)
