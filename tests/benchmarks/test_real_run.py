"""bitserve and the bare uvicorn beside each other, for seconds: real servers, wrk, answers checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.child import child_of
from benchmarks.peers import bare_uvicorn, bitserve
from benchmarks.peers.models import tiny
from benchmarks.peers.pairing import Void, interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.questions import Questions, WrongAnswer, questions_for
from benchmarks.peers.setup import IN_PROCESS, Effort, Standing, loaded, runners, up
from benchmarks.peers.wording import BINARY, JSON

MODEL = tiny()
QUESTIONS = questions_for(MODEL)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Peer]]:
    with up((bitserve, bare_uvicorn), [MODEL], tmp_path_factory.mktemp("peers")) as standing:
        assert not standing.absent
        yield standing.peers


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize("kind", [BINARY, JSON])
def test_a_short_run_is_sound(peers: dict[str, Peer], tmp_path: Path, kind: str) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(MODEL.model.SerializeToString())
    with child_of(model) as child:
        turns = runners(Standing(peers), kind, QUESTIONS, tmp_path, 4, Effort(rounds=1, seconds=1), child)
        found = interleaved(turns, 1)
    assert found.void == {}
    assert list(found.rounds[0]) == [bitserve.NAME, bare_uvicorn.NAME, IN_PROCESS]
    for measured in found.rounds[0].values():
        assert measured["requests_per_s"] > 10
        assert 0 < measured["p50_ms"] <= measured["p99_ms"]
        assert measured["cpu_s_per_request"] > 0


@pytest.mark.usefixtures("wrk")
def test_a_server_that_answers_wrong_is_void(peers: dict[str, Peer], tmp_path: Path) -> None:
    doubled = tuple(2 * answer for answer in QUESTIONS.answers)
    lies = Questions(QUESTIONS.served, QUESTIONS.inputs, doubled)
    turns = runners(Standing(peers), BINARY, lies, tmp_path, 4, Effort(rounds=1, seconds=1))
    found = interleaved(turns, 1)
    assert "answers question 0" in found.void[bitserve.NAME]
    assert bare_uvicorn.NAME not in found.void, "it is asked for its constant and nothing else"


def test_a_constant_that_is_not_the_constant_is_wrong(peers: dict[str, Peer]) -> None:
    bare = peers[bare_uvicorn.NAME]
    assert bare.constants is not None
    with pytest.raises(WrongAnswer, match="constant"):
        bare.check(BINARY, QUESTIONS, bare.constants[JSON])


def test_the_constants_are_as_long_as_the_answers(peers: dict[str, Peer]) -> None:
    said = {kind: peers[bitserve.NAME].ask_all(kind, QUESTIONS) for kind in (BINARY, JSON)}
    constants = peers[bare_uvicorn.NAME].constants
    assert constants is not None
    assert len(constants[BINARY]) == pytest.approx(len(said[BINARY][0]), abs=8)
    assert len(constants[JSON]) == pytest.approx(len(said[JSON][0]), abs=40)


@pytest.mark.usefixtures("wrk")
def test_a_server_that_is_gone_is_void_and_leaves_no_process(tmp_path: Path) -> None:
    with up((bare_uvicorn,), [MODEL], tmp_path) as standing:
        peer = standing.peers[bare_uvicorn.NAME]
        members = peer.tree.members()
    assert not any(psutil.pid_exists(one.pid) for one in members)
    with pytest.raises(Void, match="refused"):
        loaded(peer, BINARY, QUESTIONS, tmp_path, 2, 1)


def test_memory_and_cpu_are_of_the_server(peers: dict[str, Peer]) -> None:
    tree = peers[bitserve.NAME].tree
    before = tree.cpu_s()
    for _ in range(20):
        peers[bitserve.NAME].ask_all(JSON, QUESTIONS)
    assert tree.cpu_s() > before
    assert 20 < tree.memory_mb() < 2000
