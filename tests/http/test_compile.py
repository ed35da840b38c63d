"""A model is sent, built in a child process, and swapped in as a new version. A real server, real uploads."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.steps import CANONICAL_PASSES
from tests.support.onnx_models import linear, place, slow
from tests.support.servers import ADMIN, Server, running, until
from tests.support.streams import asking
from tests.support.uploads import build_of, ended, send

X: dict[str, Any] = {"x": ("FP32", [[1.0] * 16])}


def scaled(scale: float) -> bytes:
    return linear(scale=scale).SerializeToString()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    place(repository, "swapped", linear(scale=1))
    with running(repository, "--max-upload-bytes", "4000000") as live:
        live.wait_ready("swapped")
        yield live


def scale_of(server: Server, model: str) -> float:
    answer = server.infer(model, X)
    assert answer.status_code == 200, answer.text
    return round(float(answer.json()["outputs"][0]["data"][0]) / 1.75, 3)


def test_a_new_model_is_built_and_serves(server: Server) -> None:
    answer = send(server, "fresh", scaled(3))
    assert answer.json()["state"] in ("queued", "running")
    done = ended(server, answer)
    assert (done["state"], done["version"], done["percent"], done["error"]) == ("succeeded", 1, 100, None)
    assert scale_of(server, "fresh") == 3
    assert server.index()["fresh", "1"]["state"] == "READY"
    listed = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    assert done["id"] in [build["id"] for build in listed]


def test_every_stage_is_an_event_and_the_percent_never_falls(server: Server) -> None:
    answer = send(server, "watched", scaled(5))
    events = []
    url = f"{server.url}{answer.headers['location']}/events"
    with httpx.stream("GET", url, headers=ADMIN, timeout=120) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]
    stages = [event["stage"] for event in events]
    wanted = [
        "queued", "guard", "read", *CANONICAL_PASSES, "compare", "prove", "measure", "compile", "publish", "load",
        "done",
    ]  # fmt: skip
    assert sorted(wanted, key=stages.index) == wanted
    percents = [event["percent"] for event in events]
    assert percents == sorted(percents)
    assert (percents[-1], events[-1]["state"]) == (100, "succeeded")
    late = httpx.get(url, headers={**ADMIN, "Last-Event-ID": str(len(events) - 1)}, timeout=30)
    assert late.text.count("data: ") == 1


def test_versions_are_swapped_with_no_failed_request(server: Server) -> None:
    with asking(server, "swapped") as stream:
        for version, scale in ((2, 7), (3, 9)):
            done = ended(server, send(server, "swapped", scaled(scale)))
            assert (done["state"], done["version"]) == ("succeeded", version)
            until(lambda scale=scale: stream.seen[-1] == 1.75 * scale, "the new version answers")
    assert not stream.failed, stream.failed[:3]
    assert set(stream.seen) == {1.75 * scale for scale in (1, 7, 9)}, "every answer is that of one version"


def test_a_build_that_fails_leaves_what_is_served(server: Server, tmp_path: Path) -> None:
    before = scale_of(server, "swapped")
    done = ended(server, send(server, "swapped", b"\x80\x04no model."))
    assert (done["state"], done["version"]) == ("failed", None)
    assert "a Python pickle, which runs code when it is read" in done["error"]
    assert scale_of(server, "swapped") == before
    assert ("swapped", "4") not in server.index()


def test_a_version_that_would_not_be_served_is_not_compiled(server: Server) -> None:
    place(server.repository, "pinned", linear(scale=2), config="versions = [1]")
    until(lambda: server.state("pinned") == "READY", "the first version serves")
    answer = send(server, "pinned", scaled(4))
    done = ended(server, answer)
    assert (done["state"], done["version"], done["percent"]) == ("failed", None, 0)
    assert done["error"] == "the configuration of 'pinned' does not ask for version 2"
    assert done["stage"] == "queued", "nothing was compiled"
    assert scale_of(server, "pinned") == 2
    assert not (server.repository / "pinned" / "2").exists()


def test_the_same_upload_is_built_once(server: Server) -> None:
    first = send(server, "twice", scaled(11))
    before = ended(server, first)
    began = time.monotonic()
    again = send(server, "twice", scaled(11))
    took_s = time.monotonic() - began
    assert (again.status_code, again.headers["location"]) == (202, first.headers["location"])
    assert took_s < 1
    assert build_of(server, again) == before
    builds = httpx.get(f"{server.url}/v2/builds", headers=ADMIN).json()
    assert [build["id"] for build in builds if build["model"] == "twice"] == [before["id"]]
    assert not (server.repository / "twice" / "2").exists()


def test_a_version_that_no_longer_serves_is_published_again(server: Server) -> None:
    """Unloaded, gone from the disk, or followed by another: the same upload is not called done."""
    first = send(server, "again", scaled(13))
    assert ended(server, first)["version"] == 1
    unload = f"{server.url}/v2/repository/models/again/unload"
    assert httpx.post(unload, headers=ADMIN).status_code == 200
    second = send(server, "again", scaled(13))
    assert second.headers["location"] != first.headers["location"]
    assert (ended(server, second)["version"], scale_of(server, "again")) == (2, 13)
    shutil.rmtree(server.repository / "again")
    third = ended(server, send(server, "again", scaled(13)))
    assert (third["state"], third["version"], scale_of(server, "again")) == ("succeeded", 1, 13)
    place(server.repository, "again", linear(scale=15), version=2)
    until(lambda: server.state("again", 2) == "READY", "what was put there by hand serves")
    fourth = ended(server, send(server, "again", scaled(13)))
    assert (fourth["version"], scale_of(server, "again")) == (3, 13)


def test_the_last_of_several_uploads_is_what_serves(server: Server) -> None:
    """One, another, and the first again: built at once, or after each other."""
    answers = [send(server, "wavering", scaled(scale)) for scale in (17, 19, 17)]
    assert len({answer.headers["location"] for answer in answers}) == 3
    assert [ended(server, answer)["version"] for answer in answers] == [1, 2, 3]
    assert scale_of(server, "wavering") == 17
    ended(server, send(server, "wavering", scaled(19)))
    assert scale_of(server, "wavering") == 19


def test_the_same_upload_many_times_at_once_is_one_build(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(server, "crowd", scaled(21)), range(8)))
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert ended(server, answers[0])["version"] == 1


def test_a_build_is_cancelled(server: Server) -> None:
    answer = send(server, "large", slow(width=256, layers=12).SerializeToString())
    url = f"{server.url}{answer.headers['location']}"
    until(lambda: build_of(server, answer)["state"] == "running", "it runs")
    assert httpx.delete(url, headers=ADMIN).json()["state"] == "cancelled"
    again = httpx.delete(url, headers=ADMIN)
    assert (again.status_code, "it is cancelled" in again.text) == (400, True)
    assert not [key for key in server.index() if key[0] == "large"]


def test_what_is_refused_at_the_door(server: Server) -> None:
    assert httpx.post(f"{server.url}/v2/repository/models/m/compile", files={"model": b"x"}).status_code == 401
    assert httpx.get(f"{server.url}/v2/builds").status_code == 401
    too_large = send(server, "m", bytes(5_000_000))
    assert (too_large.status_code, "max_upload_bytes" in too_large.text) == (413, True)
    assert send(server, "..", b"x").status_code in (400, 404)
    assert send(server, "-m", b"x").status_code == 400
    other = send(server, "m", b"x", plan=("plan", b"x"))
    assert (
        other.status_code,
        "part 'plan' is not known; expected model, calibration, validation, spec" in other.text,
    ) == (400, True)
    empty = send(server, "m", b"")
    assert (empty.status_code, "no part 'model'" in empty.text) == (400, True)
    text = httpx.post(f"{server.url}/v2/repository/models/m/compile", content=b"x", headers=ADMIN)
    assert (text.status_code, "multipart/form-data" in text.text) == (400, True)
    missing = httpx.get(f"{server.url}/v2/builds/20260101-000000-000000-00000000", headers=ADMIN)
    assert (missing.status_code, "there is no build" in missing.text) == (404, True)


def test_a_build_survives_a_server_that_is_killed(tmp_path: Path) -> None:
    """What ran when the server was killed runs once more, and serves."""
    with running(tmp_path) as server:
        answer = send(server, "large", slow(width=256, layers=12).SerializeToString())
        until(lambda: build_of(server, answer)["state"] == "running", "it runs")
        server.process.kill()
        server.process.wait()
    with running(tmp_path) as server:
        done = ended(server, answer)
        assert (done["state"], done["version"], done["attempts"]) == ("succeeded", 1, 2)
        assert any("it runs once more" in line for line in done["log"])
        assert server.state("large") == "READY"
