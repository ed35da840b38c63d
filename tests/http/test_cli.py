"""The `bitserve` command as a user runs it: flags, tables, JSON, and errors of one line."""

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
from onnx import TensorProto, helper

from app.cli import app, main
from app.client import call_model, load_inputs
from app.settings import Settings
from tests.support import onnx_models
from tests.support.servers import ROOT, Server, running, until

DEAD = "http://127.0.0.1:1"  # where nobody listens; the same in every process that collects these tests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    onnx_models.place(repository, "linear", onnx_models.linear(), config="[labels]\ny = 'labels.txt'\n")
    (repository / "linear" / "labels.txt").write_text("zero\none\ntwo\nthree\n")
    onnx_models.place(repository, "add_sub", onnx_models.add_sub())
    onnx_models.place(repository, "half", _negate(TensorProto.FLOAT16))
    onnx_models.place(repository, "byte", _negate(TensorProto.INT8))
    onnx_models.place(repository, "broken", b"[red]not[/nope] a model")
    with running(repository, "--cache", str(tmp_path_factory.getbasetemp() / "plans")) as server:
        server.wait_ready("linear", "add_sub", "half", "byte")
        until(lambda: server.state("broken") == "UNAVAILABLE", "broken is known to be")
        yield server


def _negate(kind: int) -> Any:
    node = helper.make_node("Neg", ["x"], ["y"], name="negate")
    return onnx_models.build([node], {"x": (kind, ["N", 1])}, {"y": (kind, ["N", 1])})


class Ran:
    """What a command did. In-process, since a new interpreter for each would take a second."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        before, sys.argv = sys.argv, ["bitserve", *arguments]
        try:
            main()
        except SystemExit as ended:
            self.code = ended.code or 0
        finally:
            sys.argv = before
        self.out, self.err = capsys.readouterr()

    @property
    def document(self) -> Any:
        """The one JSON document on stdout, of a run that was well."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on stderr, of a run that failed."""
        assert self.code not in (0, None)
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("bitserve: ")
        return self.err.removeprefix("bitserve: ").rstrip()


# -- serve -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """`bitserve serve` up to the point where it would serve; the settings it came to."""
    seen: list[Settings] = []
    monkeypatch.setattr("app.main.serve", seen.append)
    monkeypatch.setattr("app.front.supervisor.supervise", lambda settings: seen.append(settings) or 0)
    for name in list(os.environ):
        if name.startswith("BITSERVE_"):
            monkeypatch.delenv(name)
    return seen


VALUES: dict[str, tuple[str, Any]] = {
    "repository": (".", Path(".")), "cache": ("plans", Path("plans")), "mirror": ("m", Path("m")),
    "host": ("::1", "::1"), "port": ("8123", 8123),
    "max_batch_size": ("7", 7), "drain_s": ("1.5", 1.5), "log_level": ("debug", "debug"), "metrics": ("false", False),
    "access_log": ("true", True), "front_ends": ("3", 3), "build_for_gpus": ("false", False),
    "build_executor": ("kubernetes", "kubernetes"), "build_gpu_selector": ("gpu=yes", "gpu=yes"),
}  # fmt: skip


def _value(name: str) -> tuple[str, Any]:
    """A text that is not the default, and what the setting becomes."""
    if name in VALUES:
        return VALUES[name]
    kind = Settings.model_fields[name].annotation
    return ("5000", kind(5000)) if kind in (int, float) else ("another, long enough", "another, long enough")


def _read(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def test_a_store_is_no_folder_and_what_is_neither_is_refused(served, capsys):
    assert Ran(capsys, "serve", "--repository", "s3://bucket/some/prefix").code == 0
    assert served[-1].store == "s3://bucket/some/prefix"
    ran = Ran(capsys, "serve", "--repository", "http://bucket/prefix")
    assert ran.code == 1
    assert "expected a folder, or an address of s3://, gs://, az://, file://" in ran.err


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_a_flag_and_a_variable(
    name: str, served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = _value(name)
    assert _read(Settings(), name) != value or name == "repository"
    flag = f"--{name.replace('_', '-')}"
    is_switch = Settings.model_fields[name].annotation is bool
    given = [flag if value else f"--no-{flag[2:]}"] if is_switch else [flag, text]
    where = "s3://bucket/prefix" if name == "build_executor" else str(ROOT)
    repository = [] if name == "repository" else ["--repository", where]
    assert Ran(capsys, "serve", *repository, *given).code == 0
    monkeypatch.setenv(f"BITSERVE_{name.upper()}", text)
    assert Ran(capsys, "serve", *repository).code == 0
    assert [_read(settings, name) for settings in served] == [value, value]


def test_a_flag_beats_a_variable(
    served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSERVE_PORT", "1")
    monkeypatch.setenv("BITSERVE_METRICS", "false")
    assert Ran(capsys, "serve", "--repository", str(ROOT), "--port", "2", "--metrics").code == 0
    assert (served[0].port, served[0].metrics) == (2, True)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_help_tells_each_settings_sentence_and_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    monkeypatch.setenv("TERMINAL_WIDTH", "600")
    shown = " ".join(Ran(capsys, "serve", "--help").out.split())
    field = Settings.model_fields[name]
    assert f"--{name.replace('_', '-')}" in shown
    assert f"{field.description} (default: {field.default})" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "abc"], "setting port (--port): Input should be a valid integer"),
        (["--port", "70000"], "setting port (--port): Input should be less than or equal to 65535, got '70000'"),
        (["--max-body-bytes", "1"], "setting max_body_bytes (--max-body-bytes): Input should be greater than or equal"),
        (["--log-level", "loud"], "setting log_level (--log-level): String should match pattern"),
        (["--drain-s", "inf", "--admin-token", "s3cret"], "drain_s must be finite"),
        (["--nope"], "No such option: --nope"),
        (["--metrics=maybe"], "Option '--metrics' does not take a value"),
        (["--repository", "/no/such/folder"], "the repository /no/such/folder is not a folder; make it, or name"),
        (["stray"], "Got unexpected extra argument"),
    ],
)
def test_a_bad_setting_is_one_line(
    arguments: list[str], message: str, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    line = Ran(capsys, "serve", *arguments).line
    assert line.startswith(message)
    assert "s3cret" not in line
    assert served == []


def test_a_bad_variable_is_one_line(
    served: list[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSERVE_WATCH_S", "often")
    assert Ran(capsys, "serve").line.startswith("setting watch_s (--watch-s): Input should be a valid number")


def test_serve_json_is_the_settings_without_the_token(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", str(ROOT), "--admin-token", "s3cret", "--port", "0", "--json"]
    document = Ran(capsys, "serve", *arguments).document
    assert set(document) == set(Settings.model_fields)
    assert document["port"] == 0
    assert "s3cret" not in json.dumps(document)


def test_a_port_in_use_is_one_line(server: Server) -> None:
    command = [sys.executable, "-m", "app", "serve", "--repository", str(server.repository), "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"bitserve: port {server.port} of 127.0.0.1 is in use; choose another with --port\n"


# -- models ----------------------------------------------------------------------------------------------------------


def test_models_as_a_table(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for url in (server.url, server.url + "/"):
        ran = Ran(capsys, "models", "--url", url)
        assert (ran.code, ran.err) == (0, "")
        for word in ("linear", "add_sub", "READY", "broken", "UNAVAILABLE", "not an ONNX model"):
            assert word in " ".join(ran.out.replace("┃", " ").split())


def test_models_as_json(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    document = Ran(capsys, "models", "--url", server.url, "--json").document
    assert {entry["name"]: entry["state"] for entry in document}["linear"] == "READY"


@pytest.mark.parametrize("command", [["models"], ["infer", "linear", "-i", "x=1"]], ids=" ".join)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        (DEAD, f"no answer from {DEAD}"), ("nonsense", "no answer from nonsense"), ("http://[", "no answer from http://["),
        ("http://127.0.0.1:99999999", "no answer from http://127.0.0.1:99999999"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["table", "json"])
def test_no_server_is_one_line(
    command: list[str], url: str, message: str, as_json: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = Ran(capsys, *command, "--url", url, *as_json).line
    assert line.startswith(message)
    assert line.endswith("is the server running? start it with: bitserve serve")


@pytest.mark.parametrize(
    "arguments", [["nope"], ["--nope"], ["infer"], ["models", "stray"], ["infer", "m", "--classes", "x"]]
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert Ran(capsys, *arguments).line.endswith("; see bitserve --help")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys)
    assert ran.code == 2
    assert all(command in ran.out for command in ("serve", "compile", "inspect", "tune", "bench", "models", "infer"))
    shown = [command for command in app.registered_commands if not command.hidden]
    assert len(shown) == 7


# -- infer -----------------------------------------------------------------------------------------------------------


def _infer(capsys: pytest.CaptureFixture[str], server: Server, *arguments: str) -> Ran:
    return Ran(capsys, "infer", *arguments, "--url", server.url)


ONES = json.dumps([1] * 16)
RIGHT = [1.75, 2.0, 2.25, 2.5]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of arrays, in the current folder."""
    monkeypatch.chdir(tmp_path)
    np.save("row.npy", np.ones(16, np.float32))
    np.save("rows.npy", np.ones((3, 16), np.float64))
    np.save("whole.npy", np.ones((1, 16), np.uint8))
    np.save("big_endian.npy", np.ones((1, 16), ">f4"))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez("pair.npz", INPUT0=np.full((2, 16), 5, np.int32), INPUT1=np.full((2, 16), 3, np.int64))
    np.savez("named.npz", x=np.ones((1, 16), np.float32), other=np.zeros(1))
    Path("empty.npy").write_bytes(b"")
    Path("text.npy").write_text("not an array")
    Path("torn.npz").write_bytes(Path("pair.npz").read_bytes()[:200])
    return tmp_path


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        (f"x={ONES}", 1), (f"x=[{ONES},{ONES}]", 2), (ONES, 1), ("x=row.npy", 1), ("row.npy", 1), ("x=rows.npy", 3),
        ("x=whole.npy", 1), ("x=big_endian.npy", 1), ("x=named.npz", 1), (f"x= [{ONES}] ", 1),
    ],
)  # fmt: skip
def test_inputs_from_files_and_json(
    server: Server, files: Path, capsys: pytest.CaptureFixture[str], source: str, rows: int
) -> None:
    document = _infer(capsys, server, "linear", "--input", source, "--json").document
    assert (document["model_name"], document["model_version"]) == ("linear", "1")
    (output,) = document["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [rows, 4])
    assert output["data"] == RIGHT * rows


@pytest.mark.parametrize("sources", [["pair.npz"], ["INPUT0=pair.npz", "INPUT1=pair.npz"]], ids=" ".join)
def test_several_inputs_from_an_npz(
    server: Server, files: Path, capsys: pytest.CaptureFixture[str], sources: list[str]
) -> None:
    arguments = [word for source in sources for word in ("-i", source)]
    outputs = _infer(capsys, server, "add_sub", *arguments, "--json").document["outputs"]
    assert [(o["name"], o["datatype"], set(o["data"])) for o in outputs] == [
        ("OUTPUT0", "INT32", {8}), ("OUTPUT1", "INT32", {2}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "source", "data"),
    [
        ("half", "x=1.5", [-1.5]), ("half", "x=-2", [2.0]), ("half", "x=1e3", [-1000.0]), ("half", "x=[3]", [-3.0]),
        ("half", "x=[[1],[2]]", [-1.0, -2.0]), ("byte", "x=7", [-7]), ("byte", "x=7.0", [-7]), ("byte", "5", [-5]),
        ("byte", "x=[[1.0],[-5]]", [-1, 5]),
    ],
)  # fmt: skip
def test_numbers_become_the_models_datatype(
    server: Server, capsys: pytest.CaptureFixture[str], model: str, source: str, data: list[float]
) -> None:
    assert _infer(capsys, server, model, "-i", source, "--json").document["outputs"][0]["data"] == data


def test_answer_as_a_table(server: Server, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = _infer(capsys, server, "linear", "-i", "rows.npy")
    assert (ran.code, ran.err) == (0, "")
    assert all(word in ran.out for word in ("y", "FP32", "[3, 4]", "1.75, 2, 2.25, 2.5"))
    assert "2.5, ... (20 in" in _infer(capsys, server, "linear", "-i", f"[{','.join([ONES] * 5)}]").out


def test_classes_and_version(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("linear", "-i", f"x={ONES}", "--version", "1", "--classes", "2")
    (output,) = _infer(capsys, server, *arguments, "--json").document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert output["data"] == ["2.500000:3:three", "2.250000:2:two"]
    assert "2.500000:3:three" in _infer(capsys, server, *arguments).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope", "-i", "x=1"], "Request for unknown model: 'nope' is not found"),
        (["../linear", "-i", "x=1"], "http://127.0.0.1:"),
        (["linear", "--version", "9", "-i", ONES], "Request for unknown model: 'linear' version 9 is not found"),
        (["linear", "--version", "new", "-i", ONES], "--version new: expected digits"),
        (["broken", "-i", "x=1"], "Request for unknown model: 'broken' has no available versions"),
        (["linear"], "no value for input 'x'; the model takes x FP32 [-1, 16]; give --input x=FILE.npy"),
        (["add_sub", "-i", "INPUT0=1"], "no value for input 'INPUT1'; the model takes INPUT0 INT32 [-1, 16], INPUT1"),
        (["add_sub", "-i", ONES], f"--input {ONES}: expected NAME=..., where NAME is one of INPUT0, INPUT1"),
        (["linear", "-i", "z=1"], "the model has no input 'z'; it takes x FP32 [-1, 16]"),
        (["linear", "-i", "x=1", "-i", "x=2"], "--input x=2: there is a value for input 'x' already"),
        (["linear", "-i", "x=[1,2]"], "unexpected shape for input 'x' for model 'linear'. Expected [-1,16], got [1,2]"),
        (["linear", "-i", "x=[[1,2],[3]]"], "--input x=[[1,2],[3]]: setting an array element with a sequence"),
        (["linear", "-i", "x=[1,"], "--input x=[1,: Expecting value"),
        (["linear", "-i", f"x={'[' * 9999}"], f"--input x={'[' * 58}: "),
        (["linear", "-i", 'x=["a"]'], "input 'x' is <U1, the model takes FP32"),
        (["linear", "-i", "x=[null]"], "input 'x' is object, the model takes FP32"),
        (["linear", "-i", 'x={"a": 1}'], '--input x={"a": 1}: [Errno 2] No such file'),
        (["linear", "-i", "x=[1e39]"], "input 'x' is float64, the model takes FP32, which cannot hold 1e+39"),
        (["half", "-i", "x=70000"], "input 'x' is int64, the model takes FP16, which cannot hold 70000"),
        (["byte", "-i", "x=300"], "input 'x' is int64, the model takes INT8, which cannot hold 300"),
        (["byte", "-i", "x=1.5"], "input 'x' is float64, the model takes INT8, which cannot hold 1.5"),
        (["linear", "-i", "x=nope.npy"], "--input x=nope.npy: [Errno 2] No such file or directory: 'nope.npy'"),
        (["linear", "-i", "x=empty.npy"], "--input x=empty.npy: No data left in file"),
        (["linear", "-i", "x=text.npy"], "--input x=text.npy: no .npy or .npz file of plain arrays"),
        (["linear", "-i", "x=objects.npy"], "--input x=objects.npy: no .npy or .npz file of plain arrays"),
        (["linear", "-i", "x=torn.npz"], "--input x=torn.npz: File is not a zip file"),
        (["linear", "-i", "x=pair.npz"], "--input x=pair.npz: the file holds INPUT0, INPUT1, and no 'x'"),
        (["linear", "-i", "pair.npz"], "the model has no input 'INPUT0'"),
        (["linear", "-i", "x=."], "--input x=.: [Errno 21] Is a directory"),
    ],
    ids=range(29),
)  # fmt: skip
def test_a_mistake_is_one_line(
    server: Server, files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = _infer(capsys, server, *arguments).line
    assert line.startswith(message)
    assert _infer(capsys, server, *arguments, "--json").line == line


def test_texts_are_sent_as_the_protocols_bytes() -> None:
    """No model of this server takes BYTES, others do."""
    sent: dict[str, Any] = {}
    metadata = {"name": "m", "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 2]}], "outputs": []}
    arrays = load_inputs(['x=["ab", "\u00e9"]'], metadata)
    call_model(lambda *_, **keys: sent.update(keys), "/v2/models/m", metadata, arrays, 0, progress=False)
    head = int(sent["headers"]["Inference-Header-Content-Length"])
    assert sent["content"][head:] == b"\2\0\0\0ab\2\0\0\0\xc3\xa9"
    (tensor,) = json.loads(sent["content"][:head])["inputs"]
    assert (tensor["shape"], tensor["parameters"]) == ([1, 2], {"binary_data_size": 12})


@pytest.mark.parametrize("command", [["models"], ["infer", "m", "-i", "x=1"]], ids=" ".join)
@pytest.mark.parametrize("answer", [{"hello": "world"}, ["hello"], 5, None], ids=str)
def test_another_kind_of_server_is_one_line(
    command: list[str], answer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.ask", lambda *_, **__: answer)
    assert Ran(capsys, *command).line.endswith("is it a bitserve server?")
