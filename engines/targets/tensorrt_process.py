"""Run a TensorRT builder in a process of its own: what aborts, crashes or hangs there costs its own plan alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import onnx

from engines.errors import ModelRefused
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_seam import linked_environment

__all__ = ["BUILDER", "BuilderLate", "build_apart"]

BUILDER = (sys.executable, "-m", "engines", "plan")
"""What is run, with the target, the graph, `--options FILE` and `--out FILE` appended."""
_LONGEST_S = 300.0
_MOST_SAID_CHARS = 300


class BuilderLate(ModelRefused):
    """A builder did not end within its time; another graph of the same model would cost as much."""


def build_apart(
    target: str, model: onnx.ModelProto, options: PlanOptions, progress: Callable[[float], None] = lambda share: None,
    *, command: Sequence[str] = (), timeout_s: float | None = None,
) -> tuple[bytes, BuiltPlan]:  # fmt: skip
    """The plan of a graph, and what it is, by `BUILDER` or another `command`.

    Raises ModelRefused with the reason where there is none, however its builder ended; BuilderLate where it did not
    within `timeout_s` (five minutes without it).
    """
    with tempfile.TemporaryDirectory(prefix="bitserve-plan-") as name:
        folder = Path(name)
        graph, asked, plan = folder / "graph.onnx", folder / "options.json", folder / "plan"
        graph.write_bytes(model.SerializeToString())
        asked.write_bytes(msgspec.json.encode(options))
        words = [*(command or BUILDER), target, str(graph), "--options", str(asked), "--out", str(plan)]
        built = _run(target, words, {**os.environ, **linked_environment(folder)}, progress, timeout_s or _LONGEST_S)
        return plan.read_bytes(), built


def _run(
    target: str, words: Sequence[str], environment: dict[str, str], progress: Callable[[float], None], timeout_s: float
) -> BuiltPlan:
    with tempfile.TemporaryFile() as complaint:
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=complaint, env=environment)
        with child, _ended_after(child, timeout_s) as is_late:
            said = _heard(child, progress)
            code = child.wait()
        if is_late.is_set():
            raise BuilderLate(f"the builder of {target} did not end within {timeout_s:g} s")
        if "error" in said:
            raise ModelRefused(said["error"])
        if code or "built" not in said:
            complaint.seek(max(0, complaint.seek(0, os.SEEK_END) - 4096))
            how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
            raise ModelRefused(f"the builder of {target} ended {how}: {_last_line(complaint.read())}")
    return msgspec.json.decode(said["built"], type=BuiltPlan)


@contextlib.contextmanager
def _ended_after(child: subprocess.Popen[bytes], timeout_s: float) -> Iterator[threading.Event]:
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        yield is_late
    finally:
        timer.cancel()


def _heard(child: subprocess.Popen[bytes], progress: Callable[[float], None]) -> dict[str, str]:
    """The fields of its lines of JSON, the last of each; shares are passed on. All else is ignored."""
    assert child.stdout is not None
    said: dict[str, str] = {}
    for line in child.stdout:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                said |= {key: value for key, value in found.items() if isinstance(value, str)}
                if "share" in found:
                    progress(float(found["share"]))
    return said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:_MOST_SAID_CHARS] if lines else "it said nothing"
