"""Every hostile file, sent to a real server while others ask: each is refused, and nobody else feels it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import pytest

from tests.hostile.test_model_files import ATTACKS
from tests.support.onnx_models import linear, place
from tests.support.servers import ADMIN, Server, running, until
from tests.support.streams import Stream, asking
from tests.support.uploads import ended, send

BAD_NAMES = (
    "..", "%2e%2e", "..%2f..%2fetc", "%2fetc", "a%2fb", "a%5cb", ".hidden", "-m", "stats", "%20", "a%00b", "a%0ab",
    "m" * 129, "%D9%A3", "a..b",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    place(repository, "honest", linear())
    with running(repository, "--max-queued-builds", "64") as live:
        live.wait_ready("honest")
        yield live


@pytest.fixture(scope="module")
def stream(server: Server) -> Iterator[Stream]:
    with asking(server, "honest", clients=2) as asked:
        until(lambda: bool(asked.seen), "a first answer")
        yield asked
    assert not asked.failed, asked.failed[:3]
    assert len(set(asked.seen)) == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_upload_is_refused_and_nobody_else_feels_it(attack: str, server: Server, stream: Stream) -> None:
    make, said = ATTACKS[attack]
    done = ended(server, send(server, "hostile", make()))
    assert (done["state"], done["version"]) == ("failed", None)
    assert said in done["error"]
    assert not any(place in done["error"] for place in (str(server.repository), "Traceback"))
    assert ("hostile", "1") not in server.index()
    answered = len(stream.seen)
    until(lambda: len(stream.seen) > answered + 4, "answers go on")
    assert not stream.failed, stream.failed[:3]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_before_anything_is_kept(name: str, server: Server, stream: Stream) -> None:
    before = sorted(path.name for path in (server.repository / ".builds").iterdir())
    url = f"{server.url}/v2/repository/models/{name}/compile"
    answer = httpx.post(url, files={"model": linear().SerializeToString()}, headers=ADMIN, timeout=60)
    assert answer.status_code in (400, 404), answer.text
    if answer.status_code == 400:
        assert "name" in answer.json()["error"]
    assert sorted(path.name for path in (server.repository / ".builds").iterdir()) == before
    assert sorted(path.name for path in server.repository.iterdir() if path.name[0] != ".") == ["honest"]
    assert not stream.failed, stream.failed[:3]


@pytest.mark.parametrize("attack", ["pickle", "message bomb", "deep graphs", "function bomb", "huge tensor", "zip"])
def test_a_file_in_a_load_call_passes_the_same_guard(attack: str, server: Server, stream: Stream) -> None:
    make, said = ATTACKS[attack]
    parameters = {"config": "{}", "file:1/model.onnx": base64.b64encode(make()).decode()}
    url = f"{server.url}/v2/repository/models/loaded/load"
    answer = httpx.post(url, json={"parameters": parameters}, headers=ADMIN, timeout=120)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text
    assert server.state("loaded") != "READY"
    assert not stream.failed, stream.failed[:3]
