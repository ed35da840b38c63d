"""`bitserve bench` as a user runs it, on real servers: loops, encodings, figures against the server's own, failures."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper

from app.bench.percentiles import NAMES
from tests.http.test_cli import DEAD, Ran
from tests.support import onnx_models
from tests.support.servers import ROOT, Server, running, until


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.place(folder, "linear", onnx_models.linear())
    onnx_models.place(folder, "sums", sums())
    return folder


def sums() -> onnx.ModelProto:
    """Two outputs of two inputs [N, T], T as the request has it."""
    tensor = (onnx.TensorProto.FLOAT, ["N", "T"])
    nodes = [helper.make_node(op, ["a", "b"], [op], name=op) for op in ("Add", "Sub")]
    return onnx_models.build(nodes, {"a": tensor, "b": tensor}, {"Add": tensor, "Sub": tensor})


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with running(repository) as started:
        started.wait_ready()
        yield started


@pytest.fixture(scope="module")
def refusing(repository: Path, server: Server) -> Iterator[Server]:
    """Takes one row that waits; the plans are there."""
    with running(repository, "--max-queue-rows", "1") as started:
        started.wait_ready()
        yield started


SHORT = ("--duration", "0.4", "--warmup", "0.1")


def bench(capsys: pytest.CaptureFixture[str], url: str, *arguments: str, code: int = 0) -> Any:
    """The document of a run."""
    ran = Ran(capsys, "bench", *arguments, "--url", url, "--json")
    assert ran.code == code, ran.err
    return json.loads(ran.out)


def counted(server: Server, model: str) -> Any:
    return httpx.get(f"{server.url}/v2/models/{model}/stats").json()["model_stats"][0]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    "loop", [("--concurrency", "1,8"), ("--rate", "200,400"), ("--rate", "300", "--arrivals", "constant")]
)
def test_the_figures_are_the_servers_own(
    server: Server, capsys: pytest.CaptureFixture[str], loop: tuple[str, ...], binary: bool
) -> None:
    before = counted(server, "sums")
    told = bench(
        capsys, server.url, "sums", *loop, "--requests", "120", "--warmup", "0", "--rows", "3",
        *(["--binary"] if binary else []),
    )  # fmt: skip
    after, levels = counted(server, "sums"), told["levels"]
    assert len(levels) == len(loop[1].split(","))
    # one request was sent before, to see whether any succeeds
    assert after["inference_count"] - before["inference_count"] == 3 * (120 * len(levels) + 1)
    assert after["execution_count"] - before["execution_count"] == 1 + sum(one["server"]["batches"] for one in levels)
    assert (told["mode"], told["binary"]) == ("closed" if loop[0] == "--concurrency" else "open", binary)
    for level in levels:
        check(level, requests=120, rows=3)


def check(level: dict[str, Any], requests: int, rows: int) -> None:
    """What holds of any level without failures."""
    assert (level["requests"], level["answers"], level["failures"]) == (requests, requests, {})
    latency, told = level["latency_ms"], level["server"]
    ordered = [latency[name] for name in ("min", *NAMES, "max")]
    assert ordered == sorted(ordered)
    assert 0 < latency["min"] <= latency["mean"] <= latency["max"]
    assert level["rows_per_s"] == pytest.approx(rows * level["requests_per_s"], abs=0.1)
    assert level["requests_per_s"] == pytest.approx(requests / level["seconds"], rel=0.01)
    assert told["requests"] == requests
    assert sum(int(size) * count for size, count in told["batch_rows"].items()) == requests * rows
    assert told["mean_batch_rows"] == pytest.approx(requests * rows / told["batches"], abs=0.001)
    assert told["queue_ms"] + sum(told["compute_ms"].values()) <= told["request_ms"] + 0.01
    assert told["other_ms"] == pytest.approx(
        max(0.0, latency["mean"] - told["queue_ms"] - sum(told["compute_ms"].values())), abs=0.001
    )
    assert level["driver"]["cpu_us_per_request"] > 0


def test_a_closed_loop_lasts_as_long_as_asked_and_keeps_its_connections(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (level,) = bench(capsys, server.url, "linear", "-c", "4", "--binary", *SHORT)["levels"]
    assert level["seconds"] == pytest.approx(0.4, abs=0.01)
    assert level["driver"]["connections"] == 4
    assert level["requests_per_s"] * 0.4 == pytest.approx(level["answers"], abs=5), "but those under way at its end"
    assert max(int(rows) for rows in level["server"]["batch_rows"]) <= 4


def test_an_open_loop_sends_at_its_rate(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (level,) = bench(capsys, server.url, "linear", "--rate", "250", "--arrivals", "constant", *SHORT)["levels"]
    assert (level["rate_per_s"], level["requests"], level["answers"]) == (250.0, 100, 100)
    assert level["driver"]["late_ms"]["p50"] < 5


def test_variable_sizes_and_versions(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("-c", "2", "--requests", "10", "--warmup", "0")
    told = bench(capsys, server.url, "sums", *few)
    assert told["notes"] == [
        f"variable sizes of input {name!r} were taken as 16; --shape {name}=16 sets them" for name in ("a", "b")
    ]
    told = bench(capsys, server.url, "sums", *few, "--shape", "a=5", "--shape", "b=5", "--version", "1")
    assert (told["notes"], told["version"], told["levels"][0]["answers"]) == ([], "1", 10)


def test_inputs_from_a_file(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(80, dtype=np.float32).reshape(5, 16))
    told = bench(capsys, server.url, "linear", "-i", str(tmp_path / "x.npz"), "-c", "2", "--requests", "20")
    assert told["inputs"] == "from files, 5 different requests"
    assert told["levels"][0]["answers"] == 20


def test_tables_and_a_plot(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = Ran(capsys, "bench", "linear", "-c", "1,4", *SHORT, "--url", server.url, "--plot", str(tmp_path / "p.svg"))
    assert ran.code == 0
    assert f"linear version 1 at {server.url} (bitserve" in ran.out
    assert re.search(r"concurrency +requests/s +p50 +p90 +p95 +p99 +p99.9 +max ms +failed", ran.out)
    assert re.search(r"concurrency +queue ms +compute ms +other ms +rows a batch +batches by rows", ran.out)
    assert re.fullmatch(r"(concurrency [14]: \d+ requests/s, p50 [\d.]+ ms, p99 [\d.]+ ms, 0 failed\n){2}", ran.err)
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn.startswith("<?xml")
    for text in ("concurrency (requests under way)", "latency (ms, logarithmic)", "batches (%)"):
        assert f">{text}</text>" in drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "unknown model: 'nope' is not found; it serves linear, sums"),
        (["linear", "--version", "7"], "version"),
        (["linear", "--version", "x"], "--version x: expected digits"),
        (["linear", "-c", "0"], "--concurrency: '0' is none; expected 1 to 4096, such as 1,16,64"),
        (["linear", "-c", "1", "--rate", "1"], "give --concurrency (closed loop) or --rate (open loop), not both"),
        (["linear", "--rate", "x"], "--rate: 'x' is none"),
        (["linear", "--arrivals", "x"], "--arrivals x: expected poisson or constant"),
        (["linear", "--duration", "1", "--requests", "1"], "give --duration or --requests, not both"),
        (["linear", "--duration", "nan"], "--duration"),
        (["linear", "--plot", "x.png"], "--plot x.png: expected a name that ends in .svg"),
        (["linear", "--plot", "none/x.svg"], "--plot none/x.svg: there is no folder none"),
        (["linear", "--rows", "64"], "no request succeeds: 400: inference request batch-size must be <= 32"),
        (["linear", "-i", "x=1"], "'x' has the shape []; expected [-1, 16]"),
        (["linear", "-i", "none.npz"], "--input none.npz: "),
        (["linear", "--shape", "x=3"], "--shape x: [3] does not fit [16]"),
        (["linear", "--header", "x"], "--header x: expected 'NAME: VALUE'"),
        (["linear", "--bogus"], "--bogus"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in Ran(capsys, "bench", *arguments, "--url", server.url).line


@pytest.mark.asks_no_engine
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (DEAD, f"no answer from {DEAD}: "),
        ("https://127.0.0.1", "--url https://127.0.0.1: expected http://HOST:PORT"),
        ("http://127.0.0.1:99999", "expected http://HOST:PORT"),
        ("x", "--url x: expected http://HOST:PORT"),
    ],
)
def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str], url: str, said: str) -> None:
    assert said in Ran(capsys, "bench", "linear", "--url", url).line


def test_refusals_are_counted_by_status(refusing: Server, capsys: pytest.CaptureFixture[str]) -> None:
    told = bench(capsys, refusing.url, "linear", "-c", "32", "--requests", "3000", "--warmup", "0", "--binary")
    (level,) = told["levels"]
    refused = level["failures"]["503"]
    assert refused["first"] == "Exceeds maximum queue size"
    assert refused["count"] > 0
    assert level["answers"] > 0
    assert refused["count"] + level["answers"] == level["requests"] == 3000
    assert level["server"]["requests"] == level["answers"]


def test_no_success_at_all_is_a_failure(repository: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """One request waits for others that are refused, since it waits."""
    with running(repository, "--delay-scheduler", "100", "--max-queue-rows", "1") as full:
        full.wait_ready("linear")
        flags = ("linear", "-c", "2", "--requests", "10", "--warmup", "0", "--timeout-s", "0.3", "--url", full.url)
        ran = Ran(capsys, "bench", *flags, "--json")
        table = Ran(capsys, "bench", *flags)
    assert (ran.code, table.code) == (1, 1)
    assert ran.err.splitlines()[-1] == "bitserve: no request succeeded: 503 Exceeds maximum queue size"
    (level,) = json.loads(ran.out)["levels"]
    assert (level["answers"], level["latency_ms"], level["server"]) == (0, None, None)
    assert level["failures"] == {
        "503": {"count": 9, "first": "Exceeds maximum queue size"},
        "timeout": {"count": 1, "first": ""},
    }
    assert re.search(r"2 +503 +9 +Exceeds maximum queue size", table.out)


# -- as a process ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def benching(server: Server, *arguments: str, stderr: Any = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    asked = [sys.executable, "-m", "app", "bench", "linear", "--url", server.url, *arguments]
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *asked],  # a shell has its background jobs ignore it
        cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_an_interrupt_ends_it_with_what_was_measured(server: Server) -> None:
    before = counted(server, "linear")["inference_count"]
    with benching(server, "-c", "2,4,8", "--duration", "1", "--warmup", "0", "--json") as process:
        assert process.stderr is not None
        assert "concurrency 2" in process.stderr.readline()
        since = counted(server, "linear")["inference_count"]
        until(lambda: counted(server, "linear")["inference_count"] > since, "the next level runs")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 130
    told = json.loads(out)
    assert told["interrupted"]
    assert [level["concurrency"] for level in told["levels"]] == [2, 4]
    assert told["levels"][1]["seconds"] < 1
    assert told["levels"][1]["answers"] > 0
    sent = sum(level["answers"] for level in told["levels"])
    until(lambda: counted(server, "linear")["inference_count"] == before + sent + 1, "nothing is sent any more", 5)


def test_a_terminal_shows_what_goes_on(server: Server) -> None:
    ours, its = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with benching(server, "-c", "2", "--duration", "1", "--warmup", "0.5", "--json", stderr=its) as process:
        os.close(its)
        out, _ = process.communicate(timeout=30)
    reader.join(10)
    os.close(ours)
    text = b"".join(shown).decode()
    assert re.search(r"concurrency 2, warm-up \d of 0.5 s: \d+ requests/s", text)
    assert re.search(r"concurrency 2, measuring \d of 1 s: \d+ requests/s .+ p50 [\d.]+ ms, p99 [\d.]+ ms", text)
    assert json.loads(out)["levels"][0]["answers"] > 0


def test_a_server_that_dies_ends_it(repository: Path, server: Server) -> None:
    with running(repository) as dying:
        dying.wait_ready("linear")
        with benching(dying, "-c", "2,4", "--duration", "60", "--warmup", "0", "--json") as process:
            until(lambda: counted(dying, "linear")["inference_count"] > 10, "load")
            dying.process.kill()
            out, _ = process.communicate(timeout=30)
    (level,) = json.loads(out)["levels"]
    assert level["answers"] > 0
    assert level["failures"]["no connection"]["count"] > 0
    assert any("the server took no connection any more" in note for note in level["notes"])
    assert level["server"] is None


# -- servers of others -------------------------------------------------------------------------------------------------


class Foreign(BaseHTTPRequestHandler):
    """The protocol's least: metadata and inference in JSON, no configuration, no statistics."""

    protocol_version = "HTTP/1.1"
    values_per_row = 2

    def do_GET(self) -> None:
        tensor = {"datatype": "FP32", "shape": [-1, 2]}
        found: dict[str, Any] = {
            "/v2": {"name": "other", "version": "9"},
            "/v2/models/m": {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]},
        }
        self._answer(found.get(self.path))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = asked["inputs"][0]["shape"][0] if "inputs" in asked else 0
        assert self.headers["X-Key"] == "k"
        data = [0.5] * rows * self.values_per_row
        self._answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [rows, 2], "data": data}]})

    def _answer(self, document: Any) -> None:
        body = json.dumps(document or {"error": "no"}).encode()
        self.send_response(200 if document else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """To nobody."""


@contextlib.contextmanager
def foreign(handler: type[Foreign]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


FEW = ("m", "-c", "2", "--requests", "30", "--warmup", "0", "--rows", "3", "-H", "X-Key: k")


@pytest.mark.asks_no_engine
def test_a_server_without_statistics_is_measured_without_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with foreign(Foreign) as url:
        told = bench(capsys, url, *FEW)
        assert (told["server"], told["version"]) == ("other 9", "")
        assert told["notes"] == [
            "the server has no statistics of the model: queue, compute and batch sizes are left out"
        ]
        (level,) = told["levels"]
        assert (level["answers"], level["server"], level["failures"]) == (30, None, {})
        assert "queue ms" not in Ran(capsys, "bench", *FEW, "--url", url).out


@pytest.mark.asks_no_engine
def test_an_answer_of_wrong_size_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    class Short(Foreign):
        values_per_row = 1

    with foreign(Short) as url:
        ran = Ran(capsys, "bench", *FEW, "--url", url)
    assert ran.line == "no request succeeds: wrong answer: output 'y' has 3 values; its shape says 6"
