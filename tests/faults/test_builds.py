"""A compile that crashes, hangs, or eats memory is one model's loss, and leaves no process behind. Needs Linux."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from app.builds.executor import BuildLimits, run_build
from engines.errors import ModelRefused
from engines.request import BuildRequest
from tests.support.onnx_models import linear, place, slow
from tests.support.servers import ROOT, running, until

GIB = 1 << 30
AUTOGROUP = Path("/proc/self/autogroup")
HEAD = """
import ctypes, json, os, signal, subprocess, sys, time
cache = sys.argv[sys.argv.index("--out") + 1]
open(os.path.join(cache, "pid"), "w").write(str(os.getpid()))
print(json.dumps({"stage": "prove"}), flush=True)
"""
HELPER = 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
ENDINGS = {
    "abort": ("os.abort()", "ended by SIGABRT at stage 'prove'"),
    "segmentation fault": ("ctypes.string_at(0)", "ended by SIGSEGV at stage 'prove'"),
    "a real-time signal": ("os.kill(os.getpid(), 40)", "ended by signal 40"),
    "hang": ("time.sleep(600)", "was ended at stage 'prove': it did not end within 1.5 s"),
    "hang with children": (HELPER + "time.sleep(600)", "it did not end within 1.5 s"),
    "memory without end": ("x = []\nwhile True: x.append(b'x' * 20_000_000)", "MiB of memory, 256 MiB are allowed"),
    "memory of a child": (
        'subprocess.run([sys.executable, "-c", "x = []\\nwhile True: x.append(b\'x\' * 20_000_000)"])',
        "256 MiB are allowed",
    ),
    "exit code": ('sys.exit("no such operator")', "with exit code 1 at stage 'prove': no such operator"),
    "exit without a word": ("os._exit(7)", "with exit code 7 at stage 'prove': it said nothing"),
    "exit 0 without a result": ("pass", "ended with exit code 0"),
    "garbage": (
        "os.write(1, b'\\xff' * 300_000 + b'\\n[1, 2]\\n\"key\"\\n7\\n' + b'[' * 60_000 + b'\\n'); sys.exit(9)",
        "with exit code 9 at stage 'prove'",
    ),
    "a child that keeps the pipes": (HELPER + "sys.exit(4)", "with exit code 4"),
    "an exception": ("raise ValueError('bad weights')", "exit code 1 at stage 'prove': ValueError: bad weights"),
    "its own reason": ('print(json.dumps({"error": "too odd"})); sys.exit(3)', "too odd"),
    "a full disk": (
        "print(json.dumps({'error': os.strerror(28)})); sys.exit(3)",
        "no space left in the cache or in the folder of temporary files",
    ),
    "a reason without end": ('print(json.dumps({"error": "e" * 50_000})); sys.exit(3)', "eee"),
}


def compile_with(script: str, cache: Path, timeout_s: float = 1.5) -> None:
    source = cache / "model.onnx"
    source.write_bytes(b"x")
    command = [sys.executable, "-c", HEAD + script]
    asyncio.run(run_build(BuildRequest(source), cache, BuildLimits(timeout_s, GIB // 4), command))


def group_is_gone(cache: Path) -> bool:
    """No process of the compile is left, whatever group it is in: all were started with this folder in their arguments
    or stand in it.
    """
    return not [p for p in psutil.process_iter() if _belongs(p, cache)]


def _belongs(process: psutil.Process, cache: Path) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return str(cache) in " ".join(process.cmdline()) or f"{tempfile.gettempdir()}/bitserve-build-" in process.cwd()
    except psutil.Error:
        return False


@pytest.mark.asks_no_engine
@pytest.mark.parametrize("name", ENDINGS)
def test_however_a_compile_ends_there_is_a_reason_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    script, reason = ENDINGS[name]
    started = time.monotonic()
    timeout_s = 1.5 if name.startswith("hang") else 30
    with pytest.raises(ModelRefused) as refused:
        compile_with(script, tmp_path, timeout_s)
    assert reason in str(refused.value)
    assert len(str(refused.value)) <= 1100
    assert time.monotonic() - started < 15
    until(lambda: group_is_gone(tmp_path), "the whole process group gone", timeout_s=30)


@pytest.mark.asks_no_engine
def test_the_reason_is_read_though_a_stage_could_not_be_noted(tmp_path: Path) -> None:
    """A server's own disk is full as well: it can store no stage."""
    source = tmp_path / "model.onnx"
    source.write_bytes(b"x")
    script = HEAD + 'print(json.dumps({"error": "too odd"})); sys.exit(3)'

    def note(stage: str, share: float) -> None:
        Path("/dev/full").write_text(stage)

    with pytest.raises(ModelRefused, match=r"^too odd$"):
        asyncio.run(
            run_build(BuildRequest(source), tmp_path, BuildLimits(30, GIB), [sys.executable, "-c", script], note)
        )


@pytest.mark.asks_no_engine
def test_the_reason_names_files_without_their_folders(tmp_path: Path) -> None:
    script = 'print(json.dumps({"error": f"cannot read {sys.argv[1]} into {cache}"})); sys.exit(3)'
    with pytest.raises(ModelRefused) as refused:
        compile_with(script, tmp_path)
    assert str(refused.value) == "cannot read model.onnx into ..."


@pytest.mark.asks_no_engine
def test_a_compile_sees_no_secret_and_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSERVE_ADMIN_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    script = (
        'json.dump({"env": dict(os.environ), "here": os.listdir(), "nice": os.nice(0)}, open(cache + "/seen", "w"))'
    )
    with pytest.raises(ModelRefused):
        compile_with(script, tmp_path, 30)
    seen = json.loads((tmp_path / "seen").read_text())
    assert "s3cret" not in json.dumps(seen["env"])
    assert not [key for key in seen["env"] if key.startswith("BITSERVE")]
    assert seen["here"] == []
    assert seen["nice"] == 19


@pytest.mark.asks_no_engine
@pytest.mark.skipif(not AUTOGROUP.exists(), reason="a kernel that makes no scheduling groups of sessions")
def test_a_compile_steps_back_for_the_server_as_a_group_too(tmp_path: Path) -> None:
    """In a session of its own its niceness alone says nothing to the server's processes, where groups are made."""

    async def priorities() -> set[str]:
        source = tmp_path / "model.onnx"
        source.write_bytes(b"x")
        command = [sys.executable, "-c", HEAD + 'open(cache + "/runs", "w"); time.sleep(600)']
        build = asyncio.create_task(run_build(BuildRequest(source), tmp_path, BuildLimits(60, GIB), command))
        await asyncio.to_thread(until, (tmp_path / "runs").exists, "the child runs")
        children = psutil.Process().children(recursive=True)
        of_build = [process for process in children if os.getsid(process.pid) != os.getsid(0)]  # no helpers of pytest
        said = {Path(f"/proc/{process.pid}/autogroup").read_text() for process in of_build}
        build.cancel()
        await asyncio.wait({build})
        return said

    own = AUTOGROUP.read_text()  # empty for a process that is in no session's group
    (said,) = asyncio.run(priorities())
    assert said.split()[1:] == ["nice", "10"]
    assert AUTOGROUP.read_text() == own


@pytest.mark.asks_no_engine
def test_a_compile_that_is_cancelled_is_ended(tmp_path: Path) -> None:
    async def cancel_soon() -> None:
        source = tmp_path / "model.onnx"
        source.write_bytes(b"x")
        command = [sys.executable, "-c", HEAD + HELPER + "time.sleep(600)"]
        build = asyncio.create_task(run_build(BuildRequest(source), tmp_path, BuildLimits(60, GIB), command))
        await asyncio.to_thread(until, (tmp_path / "pid").exists, "the child runs")
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build

    asyncio.run(cancel_soon())
    until(lambda: group_is_gone(tmp_path), "the whole process group gone", timeout_s=30)


@pytest.mark.asks_no_engine
def test_a_compile_does_not_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    """The real compiler, on a model that takes seconds; its parent gets SIGKILL and can do nothing about it."""
    source = tmp_path / "model.onnx"
    source.write_bytes(slow(width=1024, layers=40).SerializeToString())
    code = (
        "import asyncio, sys; from pathlib import Path; from app.builds.executor import *; "
        "from engines.request import BuildRequest; "
        "asyncio.run(run_build(BuildRequest(Path(sys.argv[1])), Path(sys.argv[2]), BuildLimits(600, 1 << 34)))"
    )
    out = tmp_path / "out"
    out.mkdir()
    server = subprocess.Popen([sys.executable, "-c", code, str(source), str(out)], cwd=ROOT)
    try:
        # the compiler's libraries are mapped: it is past its start, and at work
        children = until(lambda: psutil.Process(server.pid).children(), "the compile runs")
        until(lambda: any("openvino" in path for path in mapped(children[0])), "the compiler is loaded")
    finally:
        server.kill()
        server.wait()
    until(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE, "the orphan is gone")
    assert not list(out.iterdir())


def mapped(sandbox: psutil.Process) -> list[str]:
    """Files mapped by the process at the end of the chain that the sandbox starts."""
    try:
        last = [sandbox, *sandbox.children(recursive=True)][-1]
        return [found.path for found in last.memory_maps()]
    except psutil.Error:
        return []


@pytest.fixture
def one_compiled(tmp_path: Path) -> Path:
    """A repository whose model `good` has been compiled, and `large` has not."""
    repository = tmp_path / "repository"
    place(repository, "good", linear())
    with running(repository) as server:
        server.wait_ready("good")
    place(repository, "large", slow(width=512, layers=8))
    return repository


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--build-memory-bytes", str(64 << 20)], "64 MiB are allowed"),
        (["--build-timeout-s", "0.2"], "it did not end within 0.2 s"),
    ],
)
def test_the_other_models_are_served_when_a_compile_is_ended(flags: list[str], reason: str, one_compiled: Path) -> None:
    with running(one_compiled, *flags) as server:
        until(lambda: server.state("large") == "UNAVAILABLE", "the compile is ended")
        entry = server.index()["large", "1"]
        assert "the compile was ended at stage" in entry["reason"]
        assert reason in entry["reason"]
        assert server.state("good") == "READY"
        assert server.infer("good", {"x": ("FP32", [[1.0] * 16])}).status_code == 200
        refused = server.infer("large", {"x": ("FP32", [[1.0] * 4])})
        assert refused.status_code == 404
        assert reason in refused.json()["error"]
        assert server.process.poll() is None


@pytest.mark.asks_no_engine
def test_a_server_that_stops_ends_its_compile(tmp_path: Path) -> None:
    place(tmp_path, "large", slow(width=1024, layers=40))
    with running(tmp_path) as server:
        children = until(lambda: psutil.Process(server.process.pid).children(), "the compile runs")
        assert server.stop() == 0
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE
