"""Two servers on one repository: one builds, the other serves, and builds when the first has ended."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from app.builds.lock import BuildsLock
from tests.faults.test_build_limits import arriving, body, opening
from tests.hostile.wire import Client
from tests.support.onnx_models import linear, slow
from tests.support.servers import ADMIN, Server, running, until
from tests.support.uploads import build_of, ended, send

pytestmark = pytest.mark.asks_no_engine
SLOW = slow(width=256, layers=12).SerializeToString()
SMALL = linear(scale=3).SerializeToString()


def knows(server: Server) -> int:
    return httpx.get(f"{server.url}/v2/builds", headers=ADMIN, timeout=30).status_code


def test_a_second_server_serves_and_leaves_the_builds_alone(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        sent = send(first, "slow", SLOW)
        until(lambda: build_of(first, sent)["state"] == "running", "it runs")
        data = body(SMALL)
        with Client(first.port) as client, running(tmp_path) as second:
            client.send(opening("small", len(data)) + data[:50])
            until(lambda: arriving(first) == 1, "an upload arrives")
            url = f"{second.url}{sent.headers['location']}"
            answers = [
                send(second, "other", SMALL), httpx.get(url, headers=ADMIN), httpx.delete(url, headers=ADMIN),
                httpx.get(f"{url}/events", headers=ADMIN), httpx.get(f"{second.url}/v2/builds", headers=ADMIN),
            ]  # fmt: skip
            for answer in answers:
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "another server builds in this repository" in answer.json()["error"]
            assert client.send(data[50:]).read().status == 202, "its upload was not swept"
            done = ended(first, sent)
            assert (done["state"], done["attempts"], done["version"]) == ("succeeded", 1, 1)
            until(lambda: second.state("slow") == "READY", "the second serves it, too")
            assert httpx.get(url).status_code == 401, "the token is looked at first"


def test_the_second_server_builds_when_the_first_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as first, running(tmp_path) as second:
        sent = send(first, "slow", SLOW)
        until(lambda: build_of(first, sent)["state"] == "running", "it runs")
        assert knows(second) == 503
        first.process.kill()
        first.process.wait()
        until(lambda: knows(second) == 200, "the second has taken over")
        done = ended(second, sent)
        assert (done["state"], done["attempts"], done["version"]) == ("succeeded", 2, 1)
        assert ended(second, send(second, "small", SMALL))["state"] == "succeeded"


def test_a_lock_is_held_by_one_until_it_is_let_go(tmp_path: Path) -> None:
    one, other = BuildsLock(tmp_path / ".builds"), BuildsLock(tmp_path / ".builds")
    assert one.take()
    assert not other.take()
    one.release()
    assert other.take()
    assert not one.take()
    other.release()


def test_where_nothing_can_be_locked_a_server_builds_as_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What lies in the place of the folder stands for all that a file system may refuse."""
    (tmp_path / "repository").touch()
    lock = BuildsLock(tmp_path / "repository" / ".builds")
    with caplog.at_level(logging.WARNING):
        assert lock.take()
    assert "builds cannot be locked (Not a directory)" in caplog.text
    lock.release()
