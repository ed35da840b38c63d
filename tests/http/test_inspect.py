"""`bitserve inspect` on plans of real builds; an install without a C++ compiler says what became of binary layers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from engines.plugins.extension import extension_path
from tests.plugins.test_binary_layers import LAYERS, classifier
from tests.support.installs import copy_sources
from tests.support.onnx_models import place
from tests.support.servers import running

pytestmark = [pytest.mark.asks_no_engine, pytest.mark.asks_the_compiler]


def inspect(repository: Path, *words: str, python: Path = Path(sys.executable)) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "app", "inspect", *words, "--repository", str(repository)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=repository, env={**os.environ, "COLUMNS": "200"}
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    place(folder, "binary", classifier())
    with running(folder) as server:
        server.wait_ready("binary")
    return folder


@pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
def test_it_lists_the_binary_layers_and_their_kernels(repository: Path) -> None:
    done = inspect(repository, "binary", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["op_type"] for one in found["report"]["layers"] if one["op_type"] in LAYERS] == list(LAYERS)
    table = inspect(repository, "binary").stdout
    for layer in found["report"]["layers"]:
        assert layer["op_type"] in table
    assert all(
        f"{one['weight_bytes_saved']:,}" in table for one in found["report"]["layers"] if one["op_type"] in LAYERS
    )
    assert f"{found['manifest']['engine']['size_bytes']:,} bytes" in table


def test_an_engine_that_cannot_be_loaded_is_one_line(repository: Path, tmp_path: Path) -> None:
    """It is loaded to measure what may run on the server's loop."""
    damaged = tmp_path / "damaged"
    shutil.copytree(repository, damaged)
    for blob in (damaged / ".cache").glob("*/*.blob"):
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    done = inspect(damaged, "binary")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("bitserve: ")) == (1, True)
    assert "its manifest says" in line
    assert inspect(damaged, "binary", "--json").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "has no model 'nothing'; it has binary"),
        (("binary", "--version", "7"), "model 'binary' has no version 7; it has 1"),
        (("../binary",), "model name"),
    ],
)
def test_what_is_not_there(repository: Path, words: tuple[str, ...], said: str) -> None:
    done = inspect(repository, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_version_without_a_plan(tmp_path: Path) -> None:
    place(tmp_path, "new", classifier())
    assert "version 1 of 'new' has no plan for this machine yet" in inspect(tmp_path, "new").stderr


def link(source: str, target: str) -> None:
    """Packages of a gigabyte are not copied where both folders are on one disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv where bitserve was installed with no C++ compiler, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("bare")
    copy_sources(folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    (site,) = (folder / "venv/lib").glob("python3*/site-packages")
    own = shutil.ignore_patterns("*bitserve*", "__pycache__")
    shutil.copytree(sysconfig.get_path("purelib"), site, copy_function=link, ignore=own, dirs_exist_ok=True)
    none = {**os.environ, "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc", "CMAKE_GENERATOR": "Unix Makefiles"}
    command = [
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--upgrade",
        "--target",
        str(site),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(folder / "source")], capture_output=True, text=True, check=False, env=none
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(site.glob("engines/plugins/cpu/*.plugin"))
    return python


@pytest.mark.timeout(300)
def test_without_a_compiler_binary_layers_are_convolutions_and_it_is_said(
    without_compiler: Path, tmp_path: Path
) -> None:
    place(tmp_path, "binary", classifier())
    with running(tmp_path, python=without_compiler) as server:
        server.wait_ready("binary")
        note = server.index()["binary", "1"]["reason"]
    assert "2 binary layers run as convolutions of floats: their native kernels are not compiled" in note
    said = inspect(tmp_path, "binary", python=without_compiler).stdout
    assert "run as convolutions of floats" in " ".join(said.replace("│", " ").split())
    assert "Convolution" in said
    assert "BinaryConv2d" not in said
