"""`pip install .` in a fresh venv, with no extras, serves and compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.installs import copy_sources
from tests.support.onnx_models import linear, place
from tests.support.servers import free_port, until


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv that has the package and what it depends on, nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    copy_sources(source)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    bin_folder = folder / "venv/bin"
    done = subprocess.run(
        [bin_folder / "pip", "install", "--quiet", "--disable-pip-version-check", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return bin_folder


@pytest.mark.timeout(400)
def test_a_fresh_install_serves_and_compiles(fresh: Path, tmp_path: Path) -> None:
    place(tmp_path / "models", "linear", linear())
    port = free_port()
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BITSERVE", "VIRTUAL_ENV"))
    }
    server = subprocess.Popen(
        [fresh / "bitserve", "serve", "--repository", "models", "--port", str(port)],
        cwd=tmp_path,
        env=clean,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/v2/models/linear/ready", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        until(ready, "the model compiled and ready", timeout_s=90)
        command = [fresh / "bitserve", "infer", "linear", "--url", url, "--input", f"x={[1.0] * 16}", "--json"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout
        assert json.loads(said)["outputs"][0]["data"] == [1.75, 2.0, 2.25, 2.5]
    finally:
        server.terminate()
        assert server.wait(30) == 0


def test_python_m_app_is_the_command(fresh: Path, tmp_path: Path) -> None:
    said = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for command in ([fresh / "bitserve"], [fresh / "python", "-m", "app"])
    ]
    assert said[0] == said[1]
    assert "serve" in said[0]
