"""The repository on disk and the server beside it: what appears, changes, breaks and leaves. Needs a real server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from tests.support.onnx_models import build, linear, place, slow, softmax_over_batch
from tests.support.servers import ADMIN, ON_GPU, Server, running, until

WATCH = ("--watch-s", "0.1")
X: dict[str, Any] = {"x": ("FP32", [[1.0] * 16])}


def first(server: Server, model: str) -> float:
    """The first number that a `linear` model answers to ones: 1.75 times its scale."""
    answer = server.infer(model, X)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"][0]["data"][0])


def reason(server: Server, model: str, version: int = 1) -> str:
    return server.index().get((model, str(version)), {}).get("reason", "")


def compiles(server: Server, *models: str) -> int:
    said = {f"compiling {model}" for model in models}
    return sum(event["message"] in said for event in server.log_events())


def post(server: Server, model: str, what: str, body: object = None) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/repository/models/{model}/{what}", json=body, headers=ADMIN, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for most tests; each test has models of its own."""
    with running(tmp_path_factory.mktemp("repository"), "--watch-s", "0.1") as live:
        yield live


@pytest.fixture
def repository(server: Server) -> Path:
    return server.repository


def states(server: Server, *models: str) -> dict[tuple[str, str], str]:
    return {key: entry["state"] for key, entry in server.index().items() if key[0] in models}


def test_a_file_that_still_grows_is_not_taken(tmp_path: Path) -> None:
    """Looks are a second apart: the writer is a thread of this busy process, and may stand still for a tenth of one."""
    data = linear(scale=11).SerializeToString()
    stop = threading.Event()

    def grow() -> None:  # garbage until the end: were it taken on the way, it would be UNAVAILABLE
        with place(tmp_path, "growing", data[:10]).open("ab", buffering=0) as file:
            for byte in data[10:-1]:
                file.write(bytes([byte]))
                if stop.wait(0.004):
                    return
            file.write(data[-1:])

    with running(tmp_path, "--watch-s", "1") as server:
        states = set()
        writer = threading.Thread(target=grow)
        writer.start()
        try:
            while writer.is_alive():
                states.add(server.state("growing"))
            until(lambda: server.state("growing") == "READY", "the whole file is served")
        finally:
            stop.set()
            writer.join()
        assert states <= {"", "LOADING"}
        assert first(server, "growing") == pytest.approx(11 * 1.75)
        assert compiles(server, "growing") == 1


def test_garbage_is_unavailable_with_its_reason_and_others_serve(repository: Path, server: Server) -> None:
    place(repository, "good", linear())
    place(repository, "garbage", b"not a model at all")
    place(repository, "empty", b"")
    (place(repository, "dark", linear()).parent / "model.onnx").unlink()
    os.mkfifo(repository / "dark/1/model.onnx")
    (repository / "folder/1/model.onnx").mkdir(parents=True)
    server.wait_ready("good")
    until(lambda: server.state("garbage") == server.state("empty") == "UNAVAILABLE", "both are refused")
    assert "model.onnx is not an ONNX model" in reason(server, "garbage")
    assert reason(server, "empty") == "model.onnx is empty; expected an ONNX model"
    assert str(repository) not in json.dumps(list(server.index().values()))
    assert not states(server, "dark", "folder"), "a pipe is no model file"
    assert first(server, "good") == pytest.approx(1.75)
    answer = server.infer("garbage", X)
    assert answer.status_code == 404
    assert "not an ONNX model" in answer.json()["error"]
    place(repository, "garbage", linear(scale=2))
    until(lambda: server.state("garbage") == "READY", "the mended file is served")
    assert first(server, "garbage") == pytest.approx(3.5)


def test_a_new_version_takes_over_and_the_old_one_goes(repository: Path, server: Server) -> None:
    place(repository, "next", linear())
    server.wait_ready("next")
    place(repository, "next", linear(scale=2), version=2)
    seen = set()

    def swapped() -> bool:
        seen.add(first(server, "next"))  # every request is answered, before, during and after
        return server.state("next", 2) == "READY" and server.state("next", 1) == ""

    until(swapped, "version 2 alone")
    assert first(server, "next") == pytest.approx(3.5)
    assert seen <= {1.75, 3.5}
    shutil.rmtree(repository / "next/2")
    until(lambda: server.state("next", 1) == "READY" and server.state("next", 2) == "", "back to version 1")
    shutil.rmtree(repository / "next")
    until(lambda: not states(server, "next"), "the model is gone")
    assert server.infer("next", X).status_code == 404


def test_a_broken_new_version_leaves_the_old_one_serving(repository: Path, server: Server) -> None:
    place(repository, "broken", linear())
    server.wait_ready("broken")
    place(repository, "broken", b"garbage", version=2)
    until(lambda: server.state("broken", 2) == "UNAVAILABLE", "version 2 is refused")
    assert server.state("broken", 1) == "READY"
    assert first(server, "broken") == pytest.approx(1.75)


def test_a_version_whose_files_are_gone_answers_until_the_one_before_does(repository: Path, server: Server) -> None:
    place(repository, "back", linear())
    place(repository, "back", linear(scale=2), version=2)
    until(lambda: states(server, "back") == {("back", "2"): "READY"}, "the newest serves alone")
    shutil.rmtree(repository / "back" / "2")
    seen = []
    while not seen or seen[-1] != pytest.approx(1.75):
        seen.append(first(server, "back"))  # every call is answered: `first` wants 200
        assert len(seen) < 20_000
    assert set(map(round, seen)) == {4, 2}, "2 x 1.75, then 1.75"
    until(lambda: states(server, "back") == {("back", "1"): "READY"}, "the other has gone")


def test_a_file_replaced_in_place_while_it_is_compiled_is_served_in_the_end(repository: Path, server: Server) -> None:
    path = place(repository, "replaced", slow(width=512, layers=12))
    until(lambda: reason(server, "replaced") == "compiling", "the compile runs")
    place(repository, ".new", linear(scale=5))
    (repository / ".new/1/model.onnx").replace(path)
    until(lambda: server.infer("replaced", X).status_code == 200, "the new file is served")
    assert first(server, "replaced") == pytest.approx(5 * 1.75)


def test_a_model_removed_while_it_loads_is_gone(repository: Path, server: Server) -> None:
    place(repository, "removed", slow(width=512, layers=12))
    place(repository, "after-removed", linear(scale=21))
    until(lambda: reason(server, "removed") == "compiling", "the compile runs")
    shutil.rmtree(repository / "removed")
    server.wait_ready("after-removed")  # compiles wait for each other: the other one has ended
    until(lambda: not states(server, "removed"), "the next look has seen that it is gone", timeout_s=10)


WRONG = '[batching]\nmax_batch_size = "8"\n'


def test_a_wrong_configuration_is_answered_with_the_corrected_line(repository: Path, server: Server) -> None:
    place(repository, "wrong", linear(), config=WRONG)
    place(repository, "good", linear())
    server.wait_ready("good")
    until(lambda: server.state("wrong") == "UNAVAILABLE", "the configuration is refused")
    assert reason(server, "wrong") == (
        'config.toml: batching.max_batch_size = "8" is not allowed; expected a valid integer; '
        "for example: max_batch_size = 32"
    )
    config = repository / "wrong/config.toml"
    config.write_text("[batching]\nmax_batch_size = 8\n")
    until(lambda: server.state("wrong") == "READY", "the corrected file")
    assert limit(server, "wrong") == 8
    config.write_text("[batching]\nmax_batch_size = 16\n")
    until(lambda: limit(server, "wrong") == 16, "the changed file")
    config.write_text(WRONG)
    until(lambda: "loading it anew failed" in reason(server, "wrong"), "the mistake is said")
    assert server.state("wrong") == "READY", "what served before still serves"
    assert limit(server, "wrong") == 16
    config.unlink()
    until(lambda: limit(server, "wrong") == 32, "no file: the defaults")


def limit(server: Server, model: str) -> int:
    return int(httpx.get(f"{server.url}/v2/models/{model}/config", timeout=10).json()["max_batch_size"])


def test_labels_come_from_the_configuration(repository: Path, server: Server) -> None:
    place(repository, "labelled", linear(), config='[labels]\ny = "labels.txt"\n')
    (repository / "labelled/labels.txt").write_text("a\nb\nc\nd\n")
    place(repository, "typo", linear(), config='[labels]\nz = "labels.txt"\n')
    place(repository, "missing", linear(), config='[labels]\ny = "nowhere.txt"\n')
    place(repository, "outside", linear(), config='[labels]\ny = "../m/labels.txt"\n')
    server.wait_ready("labelled")
    until(lambda: set(states(server, "typo", "missing", "outside").values()) == {"UNAVAILABLE"}, "all are refused")
    outputs = [{"name": "y", "parameters": {"classification": 1}}]
    assert server.infer("labelled", X, outputs=outputs).json()["outputs"][0]["data"] == ["2.500000:3:d"]
    assert reason(server, "typo") == (
        'config.toml: labels.z names no output of the model; expected one of y; for example: y = "labels.txt"'
    )
    assert "'nowhere.txt' cannot be read: expected one label a line" in reason(server, "missing")
    assert "lies outside the model's folder" in reason(server, "outside")


def test_the_policy_says_which_versions_serve(repository: Path, server: Server) -> None:
    for version in (1, 2, 10):
        place(repository, "all", linear(scale=version), version=version, config='versions = "all"\n')
        place(repository, "some", linear(scale=version), version=version, config="versions = [1, 2, 7]\n")
        place(repository, "latest", linear(scale=version), version=version)
    wanted = {("all", "1"), ("all", "2"), ("all", "10"), ("some", "1"), ("some", "2"), ("latest", "10")}

    def ready() -> set[tuple[str, str]]:
        return {key for key, state in states(server, "all", "some", "latest").items() if state == "READY"}

    until(lambda: ready() == wanted, "every version that the policies name, and no other")  # they appear one by one
    assert [first(server, m) for m in ("all", "some", "latest")] == pytest.approx([17.5, 3.5, 17.5])
    (repository / "some/config.toml").write_text("versions = [10]\n")
    until(lambda: set(states(server, "some")) == {("some", "10")}, "the new policy")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mounted read-only over itself. Needs root and CAP_SYS_ADMIN; else the cache's name or mode forbids to write."""
    bound = not subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode
    if bound:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    elif (folder / ".cache").is_dir():
        (folder / ".cache").chmod(0o555)
    else:
        (folder / ".cache").write_bytes(b"")
    try:
        yield
    finally:
        if bound:
            subprocess.run(["umount", folder], check=True)
        elif (folder / ".cache").is_dir():
            (folder / ".cache").chmod(0o755)


def test_a_read_only_repository_is_served(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    place(repository, "m", linear())
    with read_only(repository), running(repository) as server:
        server.wait_ready("m")
        assert first(server, "m") == pytest.approx(1.75)
        assert any("cannot be written" in event["message"] for event in server.log_events())
    assert not (repository / ".cache").is_dir()


def test_plans_that_came_with_a_read_only_repository_are_used(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    place(repository, "broken", linear(scale=3))
    with running(repository, *WATCH) as server:
        server.wait_ready("broken")
        (broken,) = (repository / ".cache").glob("*/*.blob")
        place(repository, "m", linear())
        server.wait_ready("m")
    place(repository, "new", linear(scale=5))
    broken.write_bytes(broken.read_bytes()[:-1])
    before = listing(repository)
    with read_only(repository), running(repository) as server:
        server.wait_ready("m", "broken", "new")
        opened = not ON_GPU  # there, the engine of the CPU is not, until a batch needs it
        assert [compiles(server, model) for model in ("m", "broken", "new")] == [0, int(opened), 1]
        assert [first(server, model) for model in ("m", "broken", "new")] == pytest.approx([1.75, 5.25, 8.75])
    assert listing(repository) == before


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_an_empty_repository_is_ready_and_stray_files_are_ignored(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    repository.mkdir()
    with running(repository, "--watch-s", "0.1") as server:
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        assert server.index() == {}
        (repository / "README.md").write_text("hello")
        (repository / "notes").mkdir()
        (repository / ".git/1").mkdir(parents=True)
        (repository / ".git/1/model.onnx").write_bytes(b"x")
        (repository / "loop").symlink_to("loop")
        (repository / "gone").symlink_to("nowhere")
        for odd in ("01", "latest", "-1", "1" * 30, "٣"):
            place(repository, "odd", linear(), version=odd)
        place(repository, "not allowed", linear())
        place(repository, "m", linear())
        (repository / "m/1/model.onnx.part").write_bytes(b"x")
        (repository / "m/2").mkdir()
        server.wait_ready("m")
        assert set(server.index()) == {("m", "1")}


def test_unload_stays_until_load(repository: Path, server: Server) -> None:
    place(repository, "unloaded", linear())
    place(repository, "other", linear())
    server.wait_ready("unloaded", "other")
    assert post(server, "unloaded", "unload").status_code == 200
    until(lambda: server.state("unloaded") == "UNAVAILABLE", "unloaded")
    place(repository, "unloaded", linear(scale=2))  # what the watcher would load
    place(repository, "other", linear(scale=2))
    until(lambda: first(server, "other") == 3.5, "the watcher has looked")
    assert server.state("unloaded") == "UNAVAILABLE"
    assert reason(server, "unloaded") == "unloaded"
    assert server.infer("unloaded", X).status_code == 404
    assert post(server, "unloaded", "load").status_code == 200
    assert first(server, "unloaded") == pytest.approx(3.5)
    assert post(server, "unloaded", "load").status_code == 200, "loading again is loading anew"
    assert post(server, "nothing", "load").status_code == 400
    assert post(server, "nothing", "unload").status_code in (400, 404)
    assert "path traversal" in post(server, "..%2Fm", "load").json()["error"]


def test_load_with_a_configuration_of_its_own(repository: Path, server: Server) -> None:
    place(repository, "override", linear(), config="[batching]\nmax_batch_size = 4\n")
    server.wait_ready("override")
    config = json.dumps({"batching": {"max_batch_size": 2}})
    assert post(server, "override", "load", {"parameters": {"config": config}}).status_code == 200
    assert limit(server, "override") == 2
    wrong = post(server, "override", "load", {"parameters": {"config": json.dumps({"instances": 0})}})
    assert wrong.status_code == 400
    assert "instances = 0 is not allowed" in wrong.json()["error"]
    assert limit(server, "override") == 2
    assert post(server, "override", "load").status_code == 200
    assert limit(server, "override") == 4, "a load without one goes back to the file"


def test_load_and_unload_while_loading(repository: Path, server: Server) -> None:
    place(repository, "l1", slow(width=256, layers=8))
    until(lambda: reason(server, "l1") == "compiling", "the compile runs")
    answers: list[httpx.Response] = []
    load = threading.Thread(target=lambda: answers.append(post(server, "l1", "load")))
    load.start()
    load.join()
    assert [a.status_code for a in answers] == [200], "a load waits for the one under way"
    assert compiles(server, "l1") == 1
    assert server.state("l1") == "READY"
    place(repository, "n", slow(width=256, layers=9))
    until(lambda: reason(server, "n") == "compiling", "the compile runs")
    assert post(server, "n", "unload").status_code == 200
    assert server.state("n") == "UNAVAILABLE"
    place(repository, "o", linear(scale=22))
    server.wait_ready("o")  # compiles wait for each other: the one of `n` has ended
    assert reason(server, "n") == "unloaded"


def test_a_model_that_is_not_batched_loads_and_says_why(repository: Path, server: Server) -> None:
    """Not batched is worth saying in the index, and no reason to answer a load with an error."""
    place(repository, "softmax", softmax_over_batch())
    assert post(server, "softmax", "load").status_code == 200
    assert server.state("softmax") == "READY"
    assert reason(server, "softmax").startswith("not batched: rows touch each other")
    assert limit(server, "softmax") == 0


def test_a_second_start_compiles_nothing_and_is_quick(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    for name in ("a", "b"):
        place(repository, name, linear(scale=len(name)))
    place(repository, "c", onnx.load_model_from_string(linear(width=32).SerializeToString()))
    with running(repository) as server:
        server.wait_ready("a", "b", "c")
        assert compiles(server, "a", "b", "c") == 2, "a and b are the same bytes"
    with running(repository) as server:
        server.wait_ready("a", "b", "c")
        spent = psutil.Process(server.process.pid).cpu_times()  # seconds of work: the machine may be busy with others
        assert spent.user + spent.system < 3
        assert compiles(server, "a", "b", "c") == 0
        assert first(server, "a") == pytest.approx(1.75)


def test_the_index_says_what_is_not_proven_or_not_exact(server: Server, repository: Path) -> None:
    double = (TensorProto.DOUBLE, ["N", 2])
    model = build([helper.make_node("Add", ["x", "x"], ["y"])], {"x": double}, {"y": double})
    place(repository, "wide", model, config="[batching]\nmax_batch_size = 1000\n")
    server.wait_ready("wide")
    assert reason(server, "wide") == "FP64 tensors are computed in FP32; batches of more than 256 rows are not proven"
    answer = server.infer("wide", {"x": ("FP64", [[1e300, 0.0]])})
    assert (answer.status_code, "expected at most 3.40282e+38" in answer.text) == (400, True)
    assert server.infer("wide", {"x": ("FP64", [[1e38, 0.0]])}).status_code == 200
    beyond = server.infer("wide", {"x": ("FP64", [[3e38, 0.0]])})
    assert (beyond.status_code, "output 'y' is beyond FP32" in beyond.text) == (400, True)
