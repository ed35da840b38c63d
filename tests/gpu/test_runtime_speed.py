"""Times of the samples' plans beside NVIDIA's own program, and of a server with and without its metrics. A GPU has not
run this yet; where none is, all of it runs on a simulated one, and its times say nothing.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.report import write_result
from engines.hardware import gpus
from tests.gpu.golden import GOLDEN, MOST_ROWS, golden
from tests.gpu.places import Place
from tests.gpu.timing import PROGRAMS, Times, rows_of, session_times, told_times
from tests.support.servers import ROOT, Server, running

LONG_S, SHORT_S = 3.0, 0.05
"""On a GPU, and where times say nothing."""
ROUNDS = 5
NAMES = [name for name in GOLDEN if not name.startswith("fashion_binary")]
"""Plans with plugins in Python are none for other programs."""


@pytest.fixture(scope="module")
def kept() -> Iterator[list[dict[str, str]]]:
    """Written where all was measured on a GPU that NVML knows."""
    rows: list[dict[str, str]] = []
    yield rows
    known = gpus()
    if known and len(rows) == len(GOLDEN):
        write_result("gpu_runtime", {"gpu": known[0]._asdict(), "rows": rows})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GOLDEN)
def test_a_plan_is_timed(place: Place, kept: list[dict[str, str]], name: str) -> None:
    made, seconds = golden(name), LONG_S if place.is_real else SHORT_S
    rows = made.rows(MOST_ROWS)
    with place.opened(made) as session:
        ours = session_times(session, rows, seconds)
    command = program(place)
    theirs = None
    if command and name in NAMES:
        shapes = {input_name: array.shape for input_name, array in rows.items()}
        theirs = told_times(command, place.plan(made), shapes, seconds)
        assert 0 < theirs.p50_ms <= theirs.p99_ms
    assert 0 < ours.p50_ms <= ours.p99_ms
    assert ours.batches_per_s > 0
    (row,) = rows_of(name, ours, theirs, PROGRAMS[place.target])
    assert PROGRAMS[place.target] in row["measured"]
    if place.is_real:
        kept.append(row)


def program(place: Place) -> list[str]:
    """Nothing where it is not installed."""
    if not place.is_real:
        return [sys.executable, "-m", "tests.gpu.trtexec"]
    found = shutil.which(PROGRAMS[place.target])
    return [found] if found else []


def test_a_program_that_fails_or_says_something_else_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"nonsense")
    with pytest.raises(subprocess.CalledProcessError):
        told_times([sys.executable, "-m", "tests.gpu.trtexec"], tmp_path / "plan", {"x": (1, 4)}, 1)
    with pytest.raises(ValueError, match="it tells no throughput"):
        told_times([sys.executable, "-c", "print('&&&& PASSED')"], tmp_path / "plan", {"x": (1, 4)}, 1)


@pytest.mark.timeout(900)
def test_p99_with_metrics_and_without(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Metrics are asked for ten times a second, NVML's among them; rounds take turns."""
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "model_repo" / "letter_mlp", repository / "letter_mlp")
    config = repository / "letter_mlp" / "config.toml"
    config.write_text(f"gpus = [0]\n{config.read_text()}")  # without a plan for it, it is not loaded
    if place.is_real:
        spec = {"precision": "fp16", "targets": ["openvino", place.target]}
        (repository / "letter_mlp" / "1" / "spec.json").write_text(json.dumps(spec))
    with (
        running(repository, "--metrics", on_gpu=not place.is_real) as watched,
        running(repository, "--no-metrics", on_gpu=not place.is_real) as unwatched,
    ):
        for server in (watched, unwatched):
            server.wait_ready("letter_mlp")
        p99_ms: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS if place.is_real else 1):
            for is_watched, server in ((True, watched), (False, unwatched)):
                p99_ms[is_watched].append(driven(server, is_watched=is_watched, seconds=2.0 if place.is_real else 0.3))
    assert all(ms > 0 for found in p99_ms.values() for ms in found)
    if place.is_real:
        with_them, without = (statistics.median(p99_ms[is_watched]) for is_watched in (True, False))
        measured = f"{with_them:.3f} ms with, {without:.3f} ms without: {with_them / without:.2f}x"
        row = {"what": "p99 with and without metrics, on a GPU", "measured": measured, "goal": "",
               "command": "make gpu-test"}  # fmt: skip
        write_result("gpu_metrics", {"gpu": gpus()[0]._asdict(), "rows": [row]})


def driven(server: Server, *, is_watched: bool, seconds: float) -> float:
    """p99 of 16 clients."""
    done, pages = threading.Event(), []

    def watch() -> None:
        with httpx.Client() as client:
            while not done.wait(0.1):
                pages.append(client.get(f"{server.url}/metrics").status_code)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        command = [sys.executable, "-m", "app", "bench", "letter_mlp", "--url", server.url, "--binary", "-c", "16"]
        told = subprocess.run(
            [*command, "--duration", str(seconds), "--warmup", "0.2", "--json"],
            cwd=ROOT, check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        done.set()
        watcher.join()
    assert set(pages) == ({200} if is_watched else {404})
    (level,) = json.loads(told.stdout)["levels"]
    assert level["failures"] == {}, level
    return float(level["latency_ms"]["p99"])


def test_a_row_says_what_was_measured() -> None:
    ours, theirs = Times(1000, 0.5, 0.75), Times(2000, 0.25, 0.5)
    (row,) = rows_of("model", ours, theirs, "trtexec")
    assert row["measured"] == "1,000 batches/s, p50 0.500 ms, p99 0.750 ms; 0.50x of trtexec, p50 2.00x"
    (alone,) = rows_of("model", ours, None, "trtexec")
    assert alone["measured"].endswith("; beside trtexec: not installed")


def test_times_of_a_batch_are_those_of_one_alone_and_their_number_is_not(tmp_path: Path) -> None:
    """As a session's: copies are waited for where one is timed."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "alone = '--exposeDMA' in sys.argv\n"
        "print('[I] Throughput: ' + ('500' if alone else '900') + ' qps')\n"
        "ms = '2' if alone else '3'\n"
        "print(f'[I] Latency: min = 1 ms, median = {ms} ms, percentile(99%) = {ms} ms')\n"
    )
    assert told_times([sys.executable, str(program)], tmp_path / "plan", {"x": (1, 4)}, 1) == Times(900, 2, 2)
