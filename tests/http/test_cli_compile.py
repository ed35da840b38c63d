"""`bitserve compile` as a user runs it: here with no server, and on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.signature import KEY_FILE
from tests.http.test_cli import DEAD
from tests.support.onnx_models import linear
from tests.support.servers import ROOT, TOKEN, Server, running
from tests.support.uploads import arrays


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file under a name of its own, with samples beside it."""
    (tmp_path / "samples.npz").write_bytes(arrays(x=np.ones((8, 16), np.float32)))
    file = tmp_path / "my model.onnx"
    file.write_bytes(linear(scale=3).SerializeToString())
    return file


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BITSERVE")}
    command = [sys.executable, "-m", "app", "compile", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env={**clean, **variables}
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """What `--json` printed: one document, and nothing beside it."""
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bitserve: ")
    return line


def test_a_model_is_compiled_here_into_a_folder_that_is_made(model: Path, tmp_path: Path) -> None:
    made = tmp_path / "new" / "models"
    samples = tmp_path / "samples.npz"
    told = document(
        run(
            model, "--name", "here", "--repository", made, "--calibration", samples, "--max-batch", 8, "--json",
            "--precision", "fp32",
        )
    )  # fmt: skip
    assert (told["chosen"], told["accuracy"]["synthetic"], told["max_batch"]) == ("fp32", False, 8)
    files = {path.name: path.read_bytes() for path in (made / "here" / "1").iterdir()}
    assert set(files) == {"model.onnx", "manifest.json", "spec.json", "calibration.npz"}
    assert (files["model.onnx"], files["calibration.npz"]) == (model.read_bytes(), samples.read_bytes())
    assert json.loads(files["spec.json"])["max_batch"] == 8
    plans = [path.name for path in (made / ".cache").iterdir() if path.name != KEY_FILE]
    assert plans == [json.loads(files["manifest.json"])["key"]]

    again = run(model, "--name", "here", "--repository", made)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("here version 2: ")
    with running(made) as server:
        server.wait_ready("here")
        answer = server.infer("here", {"x": ("FP32", [[1.0] * 16])})
        assert answer.json()["outputs"][0]["data"] == pytest.approx([5.25, 6.0, 6.75, 7.5])
        assert answer.json()["model_version"] == "2"
        assert len(list((made / ".cache").iterdir())) == 3, "two plans and a key: the server compiles nothing anew"


@pytest.mark.asks_no_engine
def test_a_spec_may_be_a_file_and_flags_go_above_it(model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec"
    spec.write_text('{"max_batch": 8, "objective": "latency"}')
    document(run(model, "--name", "m", "--repository", tmp_path / "r", "--spec", spec, "--max-batch", 4, "--json"))
    asked = json.loads((tmp_path / "r" / "m" / "1" / "spec.json").read_bytes())
    assert (asked["max_batch"], asked["objective"]) == (4, "latency")


@pytest.mark.asks_no_engine
def test_its_progress_is_shown_where_there_is_a_terminal(model: Path, tmp_path: Path) -> None:
    done = run(model, "--name", "m", "--repository", tmp_path / "r", FORCE_COLOR="1", COLUMNS="100")
    assert done.returncode == 0
    assert done.stdout.startswith("m version 1: ")
    for shown in ("m: read", "m: prove", "m: measure", "m: compile", "m: publish", "100%"):
        assert shown in done.stderr


def test_a_model_is_sent_to_a_server(server: Server, model: Path, tmp_path: Path) -> None:
    there = [
        "--server",
        server.url,
        "--calibration",
        tmp_path / "samples.npz",
        "--spec",
        '{"max_batch": 8, "precision": "fp32"}',
    ]
    told = document(run(model, "--name", "there", *there, "--json", BITSERVE_ADMIN_TOKEN=TOKEN))
    assert (told["chosen"], told["accuracy"]["synthetic"], told["max_batch"]) == ("fp32", False, 8)
    assert server.state("there") == "READY"
    found = server.repository / "there" / "1"
    assert (found / "calibration.npz").read_bytes() == (tmp_path / "samples.npz").read_bytes()
    again = run(model, "--name", "there", *there, "--token", TOKEN)
    assert again.stdout == f"there version 1 serves at {server.url}\n", "the same upload is the same version"
    assert document(run(model, "--name", "there", *there, "--token", TOKEN, "--json")) == told


@pytest.mark.asks_no_engine
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --repository FOLDER to compile here, or --server URL"),
        (["--repository", "r", "--server", "http://x"], "give --repository FOLDER to compile here, or --server URL"),
        (["--repository", "/proc/none"], "No such file or directory"),
        (["--repository", "{r}", "--calibration", "/none.npz"], "/none.npz is not a file"),
        (["--repository", "{r}", "--precision", "fp8"], "spec.precision: Input should be 'auto', 'fp32'"),
        (["--repository", "{r}", "--precision", "int8"], "precision 'int8' needs calibration samples"),
        (["--repository", "{r}", "--spec", "{"], "--spec is no JSON"),
        (["--repository", "{r}", "--spec", "/none"], "--spec /none: No such file or directory; expected JSON"),
        (["--repository", "{r}", "--name", "../x"], "model name must not contain path traversal characters"),
        (["--server", DEAD], "is the server running?"),
        (["--server", "nonsense"], "no answer from nonsense"),
        (["--server", "{url}"], "this needs the header 'Authorization: Bearer <admin token>'"),
        (["--server", "{url}", "--token", "wrong"], "the admin token is wrong"),
        (["--server", "{url}", "--token", TOKEN, "--name", "-x"], "model name '-x' is not allowed"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(flags: list[str], said: str, server: Server, model: Path, tmp_path: Path) -> None:
    filled = [
        flag.replace("{r}", str(tmp_path / "r")).replace("{url}", server.url).replace("{{", "{") for flag in flags
    ]
    assert said in refusal(run(model, "--name", "m", *filled))
    assert not list((tmp_path / "r").glob("*/1"))


@pytest.mark.asks_no_engine
def test_a_build_that_fails_is_one_line_here_and_there(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x80\x04no model.")
    for flags in (["--repository", tmp_path / "r"], ["--server", server.url, "--token", TOKEN]):
        line = refusal(run(file, "--name", "broken", *flags, "--json"))
        assert "a Python pickle, which runs code when it is read" in line
