"""However the search for coarser engines ends, the FP32 engine that was proven before it serves. Real compiles."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from app import plans as plans_module
from app.builds.executor import run_build
from app.builds.state import is_served_instead
from app.cli_compile import compile_model
from app.plans import Plans
from app.settings import Settings
from engines.errors import EngineError, PlanInvalid
from engines.report import decode_report
from engines.repository import MANIFEST_FILE, REPORT_FILE, Manifest
from engines.request import BuildRequest
from engines.runtime.plans import Here
from engines.signature import KEY_FILE
from engines.spec import Spec, encode_spec
from tests.support.onnx_models import linear

pytestmark = [pytest.mark.asks_no_engine, pytest.mark.asks_the_compiler]
GIB = 1 << 30
NOTE = "coarser engines were not tried to the end"
TRIES = """
import ctypes, os, sys, time
import engines.precision as precision
from engines.__main__ import main
from engines.errors import ModelRefused
def try_others(tryouts, subject, calibration, spec, clock):
    clock.begin("quantize")
    {ending}
precision._try_others = try_others
sys.exit(main())
"""
"""The compiler, but for what becomes of it where it tries coarser engines."""
ENDINGS = {
    "abort": ("os.abort()", "ended by SIGABRT at stage 'quantize'"),
    "segmentation fault": ("ctypes.string_at(0)", "ended by SIGSEGV at stage 'quantize'"),
    "memory": ("x = []\n    while True: x.append(b'x' * 20_000_000)", "1536 MiB are allowed"),
    "a reason": ('os.write(1, b\'{"error": "too odd"}\\n\'); os._exit(3)', "too odd"),
    "exit 0 without a result": ("os._exit(0)", "ended with exit code 0 at stage 'quantize'"),
}
WRITES = """
import os, signal, sys
from engines.__main__ import main
folder, left = sys.argv[sys.argv.index({flag!r}) + 1], {writes}
def killed(event, arguments):
    global left
    if event == "open" and str(arguments[0]).startswith(folder + os.sep) and arguments[1] != "r":
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
sys.exit(main())
"""
"""The compiler, killed when it has written so many files of a plan and opens the next."""

DIES_FOR_GPUS = """
import errno, os, pathlib, signal, sys
import engines.build, engines.__main__ as child
def end(work, clock):
    clock.begin("build tensorrt-rtx")
    {ending}
engines.build.make_gpu_plans = end
sys.exit(child.main())
"""
"""The compiler, ended when it begins to build for GPUs."""
HALF_WRITTEN = """written = child.write_plan
def write(plan, folder):
    if folder.name == "whole":
        (folder / "engine.blob").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    written(plan, folder)
child.write_plan = write
"""


class Made(NamedTuple):
    """The plan that was taken into the cache, and what its maker was warned of."""

    folder: Path
    manifest: Manifest
    warnings: list[str]


class Shelf:
    """A model with samples to calibrate by, and a server's cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(repository=folder / "repository", build_memory_bytes=3 * GIB // 2)
        self._version = folder / "repository" / "m" / "1"
        self._version.mkdir(parents=True)
        (self._version / "model.onnx").write_bytes(linear().SerializeToString())
        np.savez(self._version / "calibration.npz", x=np.random.default_rng(0).random((16, 16), np.float32))
        self._monkeypatch = monkeypatch

    def compile_by(self, script: str) -> None:
        """Let a server run this as its compiler."""
        command = [sys.executable, "-c", script, "build"]
        self._monkeypatch.setattr(plans_module, "run_build", functools.partial(run_build, command=command))

    def request(self, spec: Spec) -> BuildRequest:
        (self._version / "spec.json").write_bytes(encode_spec(spec))
        return BuildRequest.of_folder(self._version)

    def make(self, spec: Spec) -> Made:
        plans, warnings = Plans(self.settings), list[str]()
        request = self.request(spec)
        manifest = asyncio.run(plans.make(request, lambda line: None, warn=warnings.append))
        assert asyncio.run(plans.find(request)) == manifest, "it is in the cache, and believed"
        left = {path.name for path in self.settings.cache_folder.iterdir()}
        assert left == {manifest.key, KEY_FILE}, "nothing else is left"
        return Made(self.settings.cache_folder / manifest.key, manifest, warnings)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def check_is_fallback(made: Made) -> None:
    """All that the plan says of itself is about its FP32 engine."""
    report = decode_report((made.folder / REPORT_FILE).read_bytes())
    assert (made.manifest.precision, report.chosen, [one.name for one in report.candidates]) == ("fp32",) * 2 + (
        ["fp32"],
    )
    assert [note for note in made.manifest.notes if NOTE in note] == [note for note in report.notes if NOTE in note]
    assert report.hashes["engine.blob"] == made.manifest.engine.sha256
    assert sum(NOTE in note for note in report.notes) == 1


@pytest.mark.parametrize("name", ENDINGS)
def test_the_engine_that_was_proven_is_the_plan_and_the_reason_is_told(name: str, shelf: Shelf) -> None:
    ending, reason = ENDINGS[name]
    shelf.compile_by(TRIES.format(ending=ending))
    made = shelf.make(Spec())
    (warning,) = made.warnings
    assert reason in warning
    assert is_served_instead(warning)
    check_is_fallback(made)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_there_is_none_for_a_precision_that_was_asked_for(precision: str, shelf: Shelf) -> None:
    shelf.compile_by(TRIES.format(ending=ENDINGS["abort"][0]))
    with pytest.raises(EngineError, match="ended by SIGABRT at stage 'quantize'"):
        shelf.make(Spec(precision=precision))  # type: ignore[arg-type]
    assert [path.name for path in shelf.settings.cache_folder.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("writes", range(3))
def test_killed_while_it_leaves_its_last_plan_the_first_one_is_whole(writes: int, shelf: Shelf) -> None:
    shelf.compile_by(WRITES.format(flag="--out", writes=writes))
    made = shelf.make(Spec(objective="size", time_limit_s=0.001))
    assert "ended by SIGKILL at stage 'publish'" in made.warnings[0]
    check_is_fallback(made)


@pytest.mark.parametrize("writes", range(3))
def test_killed_while_it_leaves_its_first_plan_there_is_none(writes: int, shelf: Shelf) -> None:
    shelf.compile_by(WRITES.format(flag="--fallback", writes=writes))
    with pytest.raises(EngineError, match="ended by SIGKILL at stage 'check'"):
        shelf.make(Spec())
    assert [path.name for path in shelf.settings.cache_folder.iterdir()] == [KEY_FILE]


def test_a_disk_without_room_for_two_plans_may_have_it_for_one(shelf: Shelf) -> None:
    full = "import engines.handover as handover, engines.__main__ as program, errno, sys\n" + (
        "def write_plan(plan, folder):\n"
        "    (folder / handover.REPORT_FILE).write_bytes(plan.report)\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "program.write_plan = write_plan\n"
        "sys.exit(program.main())\n"
    )
    shelf.compile_by(full)
    made = shelf.make(Spec(objective="size", time_limit_s=0.001))
    assert not made.warnings
    assert not [note for note in made.manifest.notes if NOTE in note]
    assert (made.folder / MANIFEST_FILE).is_file()


def test_what_is_no_plan_is_not_taken_for_the_first_one(shelf: Shelf) -> None:
    shelf.compile_by('print(\'{"fallback": "k"}\', flush=True); import os; os.abort()')
    with pytest.raises(PlanInvalid, match=r"the compile left no engine\.blob"):
        shelf.make(Spec())
    assert [path.name for path in shelf.settings.cache_folder.iterdir()] == [KEY_FILE]


def test_the_command_says_it_on_stderr(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.compile_by(TRIES.format(ending=ENDINGS["abort"][0]))
    monkeypatch.setenv("TERM", "dumb")
    given = shelf.request(Spec())
    assert given.calibration is not None
    compile_model(given.source, name="here", repository=tmp_path / "made", calibration=given.calibration)
    said = capsys.readouterr()
    assert said.out.startswith("here version 1: ")
    (line,) = said.err.splitlines()
    assert line.startswith("bitserve: the compile ended by SIGABRT at stage 'quantize': ")
    assert is_served_instead(line)


def test_ended_while_it_builds_for_gpus_what_was_chosen_is_the_plan(shelf: Shelf) -> None:
    """Also where a precision was asked for: it is the one that was."""
    spec = Spec(precision="int8", targets=("openvino", "tensorrt-rtx"))
    shelf.compile_by(DIES_FOR_GPUS.format(ending="os.kill(os.getpid(), signal.SIGKILL)"))
    made = shelf.make(spec)
    (warning,) = made.warnings
    assert "the compile ended by SIGKILL at stage 'build tensorrt-rtx'" in warning
    assert "the engine that was chosen before serves, without plans for GPUs" in warning
    assert is_served_instead(warning)
    assert (made.manifest.precision, made.manifest.plans) == ("int8", ())
    assert any("plans for GPUs were not built to the end" in note for note in made.manifest.notes)


def test_ended_while_that_is_written_the_engine_before_is_the_plan(shelf: Shelf) -> None:
    script = DIES_FOR_GPUS.format(ending="raise AssertionError").replace("sys.exit", HALF_WRITTEN + "sys.exit")
    shelf.compile_by(script)
    made = shelf.make(Spec(targets=("openvino", "tensorrt-rtx")))
    (warning,) = made.warnings
    assert "the FP32 engine, proven before, serves instead" in warning
    check_is_fallback(made)


def test_a_plan_that_serves_stays_where_one_for_gpus_does_not_come(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built again for them, which ends: the plan is not replaced by what was left."""
    request = shelf.request(Spec(precision="int8"))
    plans = Plans(shelf.settings)
    before = asyncio.run(plans.make(request, lambda line: None))
    shelf.compile_by(DIES_FOR_GPUS.format(ending="os.kill(os.getpid(), signal.SIGKILL)"))
    monkeypatch.setattr(plans_module, "look_here", lambda: Here({"tensorrt-rtx": "1.7.1.116"}, (86,), 1))
    plans = Plans(shelf.settings)
    with pytest.raises(EngineError, match="ended by SIGKILL at stage 'build tensorrt-rtx'"):
        asyncio.run(plans.renew(request))
    assert asyncio.run(plans.find(request)) == before
