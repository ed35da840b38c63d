"""Names in a model that a terminal would obey: they are shown as escapes wherever a build speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.words import printable
from tests.support.onnx_models import place
from tests.support.servers import ROOT, TOKEN, Server, running, until
from tests.support.uploads import ended, send

TITLE = "evil\x1b]0;pwned\x07\x1b[31m\nbitserve: all is well\u202e\u2028\x9b2J"
SHOWN = r"\x1b]0;pwned\x07\x1b[31m bitserve: all is well\u202e\u2028\x9b2J"


def hostile() -> bytes:
    """A model whose operator has a name and a domain that a terminal obeys."""
    shape = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"}
    node = helper.make_node(f"Op{TITLE}", ["x"], ["y"], domain=TITLE)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(TITLE, 1)]
    model = helper.make_model(helper.make_graph([node], "g", [shape["x"]], [shape["y"]]), opset_imports=opsets)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    place(repository, "placed", hostile())
    with running(repository) as live:
        until(lambda: live.state("placed") == "UNAVAILABLE", "the model on disk is refused", timeout_s=120)
        yield live


def harmless(text: str) -> bool:
    return not {"\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\r"} & set(text)


def command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "BITSERVE_ADMIN_TOKEN": TOKEN, "COLUMNS": "4000", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments], capture_output=True, timeout=120, check=False, cwd=ROOT, env=env
    )


def test_a_build_and_the_index_say_escapes(server: Server) -> None:
    assert onnx.load_from_string(hostile()).graph.node[0].domain == TITLE
    done = ended(server, send(server, "sent", hostile()))
    assert done["state"] == "failed"
    reason = server.index()["placed", "1"]["reason"]
    for text in (done["error"], reason, *done["log"]):
        assert harmless(text)
        assert "\n" not in text
    assert SHOWN in done["error"]
    assert SHOWN in reason


def test_the_command_prints_escapes(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(hostile())
    there = command("compile", str(file), "--name", "m", "--server", server.url)
    here = command("compile", str(file), "--name", "m", "--repository", str(tmp_path / "r"))
    for done in (there, here):
        assert done.returncode == 1
        said = done.stderr.decode()
        assert SHOWN in said
        assert harmless(said)
        assert said.count("\n") == 1
    listed = command("models", "--url", server.url)
    assert listed.returncode == 0
    assert SHOWN in listed.stdout.decode()
    assert harmless(listed.stdout.decode())


@given(st.text(st.characters(codec=None, categories=None)))
def test_whatever_comes_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert all(character.isprintable() or character.isspace() for character in shown)
    assert harmless(shown)
    assert printable(shown) == shown
    shown.encode()
