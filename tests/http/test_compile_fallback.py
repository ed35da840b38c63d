"""A build over HTTP whose compile is killed, or stopped until its time is over, in a stage that its events told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from app.builds.state import is_served_instead
from tests.support.onnx_models import slow
from tests.support.servers import ADMIN, ROOT, TOKEN, Server, running
from tests.support.uploads import arrays, ended, send

pytestmark = pytest.mark.asks_the_compiler

SAMPLES = Path(__file__).parents[2] / "model_repo" / "fashion_cnn"
MODEL = (SAMPLES / "1" / "model.onnx").read_bytes()
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("repository")) as live:
        yield live


def pictures() -> np.ndarray:
    return np.asarray(np.load(SAMPLES / "heldout.npz")["image"][:100], np.float32) / 255


def signalled(
    server: Server,
    stage: str,
    number: int,
    spec: dict[str, Any] | None,
    model: bytes = MODEL,
    **calibration: np.ndarray,
) -> dict[str, Any]:
    """Send a model (the image CNN), give its compiler this signal when a stage begins, and wait for the end."""
    answer = send(server, "cnn", model, spec, calibration=arrays(**calibration or {"image": pictures()}))
    url = f"{server.url}{answer.headers['location']}/events"
    with httpx.stream("GET", url, headers=ADMIN, timeout=PATIENCE_S) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["stage"] == stage:
                os.kill(compiler(server), number)
                break
        else:
            raise AssertionError(f"the build ended without a stage {stage!r}")
    return ended(server, answer)


def compiler(server: Server) -> int:
    """The last of the chain that the sandbox starts."""
    return psutil.Process(server.process.pid).children(recursive=True)[-1].pid


def check_fp32_serves(server: Server, done: dict[str, Any], reason: str) -> None:
    assert (done["state"], done["error"]) == ("succeeded", None)
    (line,) = [line for line in done["log"] if is_served_instead(line)]
    assert reason in line
    report = httpx.get(f"{server.url}{done['report']}").json()
    assert (report["chosen"], [one["name"] for one in report["candidates"]]) == ("fp32", ["fp32"])
    assert [note for note in report["notes"] if "coarser engines were not tried to the end" in note]
    answer = server.infer("cnn", {"image": ("FP32", pictures()[:4].tolist())})
    assert answer.status_code == 200
    assert answer.json()["model_version"] == str(done["version"])
    page = httpx.get(f"{server.url}{done['report']}", headers={"accept": "text/html"}, timeout=60)
    assert (page.status_code, "coarser engines were not tried to the end" in page.text) == (200, True)


def test_killed_while_it_quantizes_it_ends_with_fp32_serving(server: Server, tmp_path: Path) -> None:
    done = signalled(server, "quantize", signal.SIGKILL, None)
    reason = "the compile ended by SIGKILL at stage 'quantize'"
    check_fp32_serves(server, done, reason)
    assert [line for line in server.log if reason in line and "the FP32 engine, proven before, serves instead" in line]
    (tmp_path / "calibration.npz").write_bytes(arrays(image=pictures()))
    words = [SAMPLES / "1" / "model.onnx", "--name", "cnn", "--calibration", tmp_path / "calibration.npz"]
    command = [sys.executable, "-m", "app", "compile", *map(str, words), "--server", server.url, "--token", TOKEN]
    again = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=ROOT)
    assert (again.returncode, again.stdout) == (0, f"cnn version {done['version']} serves at {server.url}\n")
    (line,) = again.stderr.splitlines()
    assert reason in line, "the same upload is that build, and the command tells why FP32 serves"


@pytest.mark.asks_no_engine
@pytest.mark.parametrize("stage", ["prove", "compile"])
def test_killed_before_fp32_is_proven_it_fails(stage: str, server: Server) -> None:
    large = slow(width=1024, layers=24).SerializeToString()  # a small one is past the stage when it is told of
    spec = {"precision": "auto", "objective": "size"}
    done = signalled(server, stage, signal.SIGKILL, spec, large, x=np.eye(4, dtype=np.float32))
    assert (done["state"], done["version"]) == ("failed", None)
    assert f"the compile ended by SIGKILL at stage '{stage}'" in done["error"]


@pytest.mark.asks_no_engine
def test_a_precision_that_was_asked_for_fails_where_it_is_killed(server: Server) -> None:
    done = signalled(server, "quantize", signal.SIGKILL, {"precision": "int8"})
    assert (done["state"], done["version"]) == ("failed", None)
    assert "the compile ended by SIGKILL at stage 'quantize'" in done["error"]


def test_stopped_until_its_time_is_over_it_ends_with_fp32_serving(tmp_path: Path) -> None:
    with running(tmp_path, "--build-timeout-s", "20") as server:
        done = signalled(server, "quantize", signal.SIGSTOP, {"precision": "auto"})
        check_fp32_serves(server, done, "the compile was ended at stage 'quantize': it did not end within 20 s")
