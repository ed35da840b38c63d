"""`bitserve tune` as a user runs it: real servers, real loads, and nothing left behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.cli_tune import _show
from app.tune.load import recorded
from tests.support.onnx_models import linear, place, softmax_over_batch
from tests.support.servers import ON_GPU, ROOT, Server, running, until

BAD = "# kept\n[batching]\nmax_queue_delay_us = 700000  # far too long\n[labels]\ny = 'l.txt'\n"
"""Nearly every request waits as long as that."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose plans are made, by a server."""
    folder = tmp_path_factory.mktemp("models")
    place(folder, "late", linear(), config=BAD)
    (folder / "late" / "l.txt").write_text("a\n")
    place(folder, "linear", linear())
    place(folder, "touching", softmax_over_batch())
    with running(folder) as server:
        server.wait_ready("late", "linear", "touching")
    return folder


@pytest.fixture
def repository(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "r"))


def command(*arguments: object) -> list[str]:
    module = "tests.simulated.serve" if ON_GPU else "app"  # whose trials run on a GPU, too
    return [sys.executable, "-m", module, "tune", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    """Temporary files in a folder of the test's own, where nothing may be left."""
    folder.mkdir(exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BITSERVE")}
    return {**clean, "TMPDIR": str(folder)}


def run(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=150, check=False, cwd=ROOT,
        env=environment(tmp_path / "tmp"),
    )  # fmt: skip
    assert list((tmp_path / "tmp").iterdir()) == []
    return done


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("bitserve: ")


def test_what_is_found_better_is_written_and_a_running_server_takes_it(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--repository", repository, "--rate", 60, "--seconds", 0.5, "--trials", 2, "--search", "random"]
    with running(repository) as server:
        server.wait_ready("late")
        done = run(tmp_path, "late", *flags, "--write", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        told = json.loads(done.stdout)
        check(told)
        written = (repository / "late" / "config.toml").read_text()
        asked, best = tomllib.loads(written), told["best"]
        assert "# kept\n[batching]\n" in written
        assert f"max_queue_delay_us = {best['max_queue_delay_us']}  # far too long\n" in written
        assert asked["labels"] == {"y": "l.txt"}
        assert asked["batching"]["max_queue_delay_us"] == best["max_queue_delay_us"] < 700_000
        until(lambda: delay_of(server) == best["max_queue_delay_us"], "the server takes the file")
        assert server.infer("late", {"x": ("FP32", [[1.0] * 16])}).status_code == 200
    _show(told)
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("late version 1: 60 requests/s of 1 row, Poisson", "measured again in turn", told["verdict"][:30]):
        assert part in shown


def check(told: dict[str, Any]) -> None:
    current, other = told["trials"]
    assert current["parameters"]["max_queue_delay_us"] == 700_000
    assert current["p50_ms"] > 300, "latency counts from when a request was due"
    for trial in told["trials"]:
        assert (trial["requests"], trial["failures"]) == (told["load"]["requests"], 0)
        assert 0 < trial["p50_ms"] <= trial["p99_ms"]
        assert min(trial["peak_rows_per_s"], trial["rows_per_s"]) > 0
        assert trial["cpu_ms_per_row"] >= 0  # of so few rows it may be less than a tick
    assert told["front"]
    assert [[run["parameters"] for run in runs] for runs in told["rounds"]] == [
        [trial["parameters"]] * 3 for trial in told["trials"]
    ]
    assert told["best"] == other["parameters"]
    assert told["written"]
    assert told["config"] in told["verdict"]


def delay_of(server: Server) -> Any:
    found = httpx.get(f"{server.url}/v2/models/late/config").json()
    return int(found["dynamic_batching"]["max_queue_delay_microseconds"])


def test_the_log_of_a_server_is_a_load(repository: Path, tmp_path: Path) -> None:
    with running(repository, "--access-log") as server:
        server.wait_ready("linear")
        started_s = time.monotonic()
        for rows in (1, 3, 2):
            assert server.infer("linear", {"x": ("FP32", [[1.0] * 16] * rows)}).status_code == 200
        spent_s = time.monotonic() - started_s
        assert server.infer("late", {"x": ("FP32", [[1.0] * 16])}).status_code == 200
        assert httpx.post(f"{server.url}/v2/models/linear/infer", content=b"{").status_code == 400
    (tmp_path / "log").write_text("\n".join(server.log))
    load = recorded(tmp_path / "log", "linear")
    assert load.rows.tolist() == [1, 3, 2]
    assert 0 < load.due_s[1] < load.due_s[2] < spent_s


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["linear"], "give the load: --rate REQUESTS_PER_SECOND, or --load FILE"),
        (["linear", "--rate", 5, "--load", "x"], "give the load: "),
        (["linear", "--rate", 5, "--search", "greedy"], "--search greedy: expected one of grid, random"),
        (["linear", "--rate", 5, "--p99-ms", "inf"], "--p99-ms inf: expected a finite number"),
        (["linear", "--load", "/none"], "--load /none: No such file or directory"),
        (["linear", "--rate", 5, "--seconds", 100, "--time-limit-s", 60], "give less --seconds or more"),
        (["nope", "--rate", 50], "has no model 'nope'; it has late, linear, touching; see --repository"),
        (["../x", "--rate", 50], "model name must not contain path traversal characters"),
        (["touching", "--rate", 50, "--rows", 2], "'touching' is not batched"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: list[object], said: str, repository: Path, tmp_path: Path) -> None:
    assert said in refusal(run(tmp_path, *arguments, "--repository", repository))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_is_left_when_it_is_ended(number: int, code: int, repository: Path, tmp_path: Path) -> None:
    with tuning(repository, tmp_path) as process:
        server = until(lambda: [child for child in children(process) if listens(child)], "a server of a trial")[0]
        process.send_signal(number)
        assert process.wait(40) == code
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "its server has ended")
        if number != signal.SIGKILL:
            assert list((tmp_path / "tmp").iterdir()) == []
            assert process.stdout is not None
            assert process.stdout.read() == b""


@contextlib.contextmanager
def tuning(repository: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    asked = command("linear", "--repository", repository, "--rate", 20, "--seconds", 20)
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *asked],  # a shell has its background jobs ignore it
        cwd=ROOT, env=environment(tmp_path / "tmp"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children()
    return []


def listens(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(found.status == psutil.CONN_LISTEN for found in process.net_connections("tcp"))
    return False


def test_its_folder_is_swept_by_the_next_server(repository: Path, tmp_path: Path) -> None:
    """What only a killed command leaves."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = Path(tempfile.mkdtemp(prefix=f"bitserve-tune-{int(gone.stdout)}-", dir=tmp_path))
    with running(repository, env={"TMPDIR": str(tmp_path)}) as server:
        server.wait_ready("linear")
        assert not left.exists()
