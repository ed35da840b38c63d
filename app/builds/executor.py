"""Run one build as a child process: its own group, bounded in time and memory, no secrets, niced."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import engines
from app.builds.family import Family
from app.builds.said import Wanted, read_said
from app.builds.state import Advance
from app.builds.watch import BuildLimits, watch
from app.disk import naming_full_disk
from app.temporary import own_folder
from app.words import printable
from engines.errors import ModelRefused
from engines.handover import FALLBACK, WHOLE, read_page
from engines.request import BuildRequest

__all__ = ["COMPILER", "BuildLimits", "GpuBuild", "Wanted", "render_report", "run_build", "run_child"]

log = logging.getLogger(__name__)
_PACKAGE = Path(engines.__file__).parent
_KEPT_STDERR_BYTES = 4096
_SANDBOX = (sys.executable, "-m", "engines.sandbox")
_LAST_WORDS_S = 5.0
_RENDERER = (sys.executable, "-m", "engines", "report")
COMPILER = (sys.executable, "-m", "engines", "build")
"""What is run, in the sandbox, with the source, its other inputs, `--out DIR`, `--threads N` and, where one may be left
there, `--fallback DIR` appended.
"""


class GpuBuild(NamedTuple):
    """Where there are GPUs: those to build for instead of those that the spec names, if any (such as "sm86"), and the
    folder where TensorRT keeps what it measures.
    """

    names: tuple[str, ...]
    timing_cache: Path


class Ended(NamedTuple):
    """Of a child that came to no good end: the reason, and which of `Wanted.fallbacks` it had said last."""

    reason: str
    fallback: str


class Instead(NamedTuple):
    """Of a build that came to no good end: the reason, and the folder with what it had left before. `is_whole`: all but
    its plans for GPUs, else an engine in FP32.
    """

    reason: str
    folder: Path
    is_whole: bool


async def run_build(
    request: BuildRequest, out: Path, limits: BuildLimits, command: Sequence[str] = COMPILER,
    progress: Advance = lambda stage, share: None, fallback: Path | None = None,
    gpus: GpuBuild | None = None,
) -> Instead | None:  # fmt: skip
    """Compile into the folder `out`, of which nothing may be believed; `progress` is told the stages as they
    begin and go on.

    Into another folder, `fallback`, the child may first put the plan of an FP32 engine, and into a folder of that the
    plan of the one that it chose, before it builds for GPUs. Where it had done so and then came to no good end, the
    answer says what is to be taken; else it is None. Raises ModelRefused with the reason where there is none, however
    the child ended. Nothing that it started outlives this call.
    """
    words = [*_arguments(request), "--out", str(out.absolute()), "--threads", str(limits.threads)]
    writable = [out]
    if fallback is not None:
        words += ["--fallback", str(fallback.absolute())]
        writable.append(fallback)
    if gpus is not None:
        words += ["--gpus", ",".join(gpus.names), "--timing-cache", str(gpus.timing_cache.absolute())]
        writable.append(gpus.timing_cache)
    wanted = Wanted("key", () if fallback is None else (FALLBACK, WHOLE))
    files = list(request.files().values())
    ended = await run_child([*command, *words], files, writable, limits, wanted, progress)
    if ended is None or fallback is None:
        return None
    is_whole = ended.fallback == WHOLE
    if not is_whole:  # it may have begun it
        await asyncio.to_thread(shutil.rmtree, fallback / WHOLE, ignore_errors=True)
    return Instead(ended.reason, fallback / WHOLE if is_whole else fallback, is_whole)


async def render_report(report: Path, limits: BuildLimits) -> bytes:
    """The page of a report, drawn by a child as little trusted as a compile: what it draws came from a model.

    Raises ModelRefused or PlanInvalid with the reason where there is none.
    """
    with own_folder("page") as out:
        command = [*_RENDERER, str(report.absolute()), "--out", str(out)]
        await run_child(command, [report], [out], limits, Wanted("page"))
        return await asyncio.to_thread(read_page, out)


async def run_child(
    command: Sequence[str], readable: Sequence[Path], writable: Sequence[Path], limits: BuildLimits, wanted: Wanted,
    progress: Advance = lambda stage, share: None,
) -> Ended | None:  # fmt: skip
    """Run a command that is not trusted, which may read these files and write these folders, as `run_build` does.

    It has succeeded if it ends with code 0 and a line of JSON on stdout had the field `wanted.result`. The answer is
    then None; else it is the reason, where a line had one of `wanted.fallbacks`, and ModelRefused where none had.
    """
    with naming_full_disk("the folder of temporary files"), own_folder("build") as own:
        empty, packages = own / "work", own / "packages"
        empty.mkdir()
        packages.mkdir()
        (packages / "engines").symlink_to(_PACKAGE)  # a folder to import from that holds nothing else of a checkout
        child = await asyncio.create_subprocess_exec(
            *_sandboxed(command, [*readable, packages], [*writable, empty], limits),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=empty,
            env=_environment(empty, packages),
            start_new_session=True,
        )  # fmt: skip
        said: dict[str, str] = {}
        complaint = bytearray()
        readers = asyncio.gather(
            read_said(_pipe(child.stdout), said, wanted, progress), _read_tail(_pipe(child.stderr), complaint)
        )
        family = Family(child.pid)
        try:
            stopped = await watch(child, family, limits, [*writable, empty])
        finally:
            family.end()  # also what the child started: it may hold the pipes open
            await child.wait()
            await asyncio.wait({readers}, timeout=_LAST_WORDS_S)
            readers.cancel()
        hidden = (
            *(str(path.absolute().parent) for path in readable),
            *map(str, map(Path.absolute, writable)),
            str(own),
        )
    if not (child.returncode or stopped) and wanted.result in said:
        return None
    reason = _reason(child.returncode or 0, said, complaint.decode("utf-8", "replace"), stopped, hidden)
    left = [name for name in wanted.fallbacks if name in said]
    if not left:
        raise ModelRefused(reason)
    return Ended(reason, left[-1])


def _arguments(request: BuildRequest) -> list[str]:
    further = {"--spec": request.spec, "--calibration": request.calibration, "--validation": request.validation}
    named = [(flag, str(path.absolute())) for flag, path in further.items() if path is not None]
    here = request.here
    if here is not None:
        named.append(("--here", f"{here.target}:{','.join(here.names)}"))
    return [str(request.source.absolute()), *(word for pair in named for word in pair)]


def _sandboxed(
    command: Sequence[str], readable: Sequence[Path], writable: Sequence[Path], limits: BuildLimits
) -> list[str]:
    """The command with no network, no sight of other processes, and no files but these, as far as the kernel allows."""
    options = [
        f"--parent={os.getpid()}",
        f"--cpu-s={math.ceil(limits.cpu_s) + 1}",
        f"--file-bytes={limits.file_bytes}",
        *(f"--read={path.absolute()}" for path in readable),
        *(f"--write={folder.absolute()}" for folder in writable),
        *(f"--write={device}" for device in sorted(Path("/dev").glob("nvidia*"))),  # TensorRT builds on a GPU
    ]
    return [*_SANDBOX, *options, "--", *command]


def _environment(home: Path, packages: Path) -> dict[str, str]:
    """Only what a compiler needs; tokens and keys of the server stay with the server."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH") if key in os.environ}
    own = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(packages)}
    return {**kept, **own, "NNCF_CI": "1", "PYTHONUNBUFFERED": "1"}


def _pipe(reader: asyncio.StreamReader | None) -> asyncio.StreamReader:
    assert reader is not None
    return reader


async def _read_tail(pipe: asyncio.StreamReader, tail: bytearray) -> None:
    while chunk := await pipe.read(65536):
        tail += chunk
        del tail[:-_KEPT_STDERR_BYTES]


def _reason(code: int, said: dict[str, str], complaint: str, stopped: str, hidden: Sequence[str]) -> str:
    stage = said.get("stage", "start")
    if stopped:
        return f"the compile was ended at stage '{stage}': {stopped}"
    if said.get("error") == os.strerror(errno.ENOSPC):  # it writes in two places, and says no path
        return "no space left in the cache or in the folder of temporary files"
    if "error" in said:
        return _without_paths(said["error"], hidden)
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "it said nothing")
    log.warning("a compile crashed", extra={"stage": stage, "stderr": complaint[-1000:]})
    how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
    reason = _without_paths(printable(last), hidden)[:300]
    return f"the compile ended {how} at stage '{stage}': {reason}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _without_paths(text: str, hidden: Sequence[str]) -> str:
    """The index is public: it names files, never where they lie on this machine."""
    for folder in (*(folder for folder in hidden if folder != os.sep), str(_PACKAGE.parent), sys.prefix):
        text = text.replace(folder + os.sep, "").replace(folder, "...")
    return text
