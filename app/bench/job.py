"""A whole run: the server is asked about the model, requests are made, levels run, and a document comes of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from app.bench.errors import BenchFailed
from app.bench.inputs import ASSUMED_SIZE, drawn, given, with_sizes
from app.bench.live import live
from app.bench.messages import Load, Setup
from app.bench.process import LoadProcess, load_process
from app.bench.questions import made
from app.bench.report import level_document
from app.bench.statistics import read
from app.bench.sweep import Level, Settings, loads, run_load, sweep
from app.bench.target import Server, Target, opened

__all__ = ["Job", "run_job"]

_SERVERS_FAULT, _TOO_MANY = 500, 429


@dataclass(frozen=True)
class Job:
    """What the command was asked for; `inputs` are arguments of --input, `sizes` shapes of rows by input."""

    model: str
    version: str
    url: str
    levels: Sequence[Level]
    settings: Settings
    rows: int
    binary: bool
    inputs: Sequence[str]
    sizes: Mapping[str, Sequence[int]]
    headers: Sequence[tuple[str, str]]
    timeout_s: float


def run_job(job: Job) -> dict[str, Any]:
    """The document, of all levels or of those up to an interrupt. Raises BenchFailed where none can be run."""
    for level in job.levels:
        loads(job.settings, level)  # what cannot be is said before anything runs
    server = Server(job.url, job.headers)
    target = opened(server, job.model, job.version)
    setup, notes, told = _setup(job, server, target)
    path = target.path.removeprefix(server.prefix)
    has_statistics = read(server, path) is not None
    if not has_statistics:
        notes.append("the server has no statistics of the model: queue, compute and batch sizes are left out")
    document: dict[str, Any] = {
        "model": target.model, "version": target.version, "url": server.url, "server": target.server,
        "mode": "closed" if job.levels[0].rate is None else "open",
        "arrivals": None if job.levels[0].rate is None else job.settings.arrivals,
        "rows": job.rows, "binary": job.binary, "inputs": told, "request_bytes": len(setup.requests[0]),
        "seed": job.settings.seed, "warmup_s": job.settings.warmup_s, "duration_s": job.settings.seconds,
        "requests": job.settings.requests, "levels": [], "notes": notes, "interrupted": False,
    }  # fmt: skip
    with _interrupts() as interrupted, load_process(setup) as process, live(document, job.settings) as display:
        _try_one(process, interrupted.is_set)
        measured = sweep(
            process, job.levels, job.settings, lambda: read(server, path) if has_statistics else None, display.show,
            interrupted.is_set,
        )  # fmt: skip
        for one in measured:
            document["levels"].append(level_document(one, job.settings.connections))
            display.finished(document["levels"][-1])
        document["interrupted"] = interrupted.is_set()
    if document["interrupted"]:
        notes.append(f"interrupted; measured: {len(document['levels'])} of {len(job.levels)} levels, the last in part")
    return document


def _setup(job: Job, server: Server, target: Target) -> tuple[Setup, list[str], str]:
    """The requests, notes about them, and their origin in words."""
    notes = []
    if job.rows > 1 and not any(tensor.has_rows for tensor in target.inputs):
        raise BenchFailed(f"{target.model!r} takes no rows in the first dimension of its inputs; leave --rows out")
    if job.inputs:
        if job.sizes:
            raise BenchFailed("--shape is for inputs that are drawn; leave it out, or leave --input out")
        arrays, told = given(target, job.inputs), "from files"
    else:
        shapes, assumed = with_sizes(target, job.sizes)
        notes += [
            f"variable sizes of input {name!r} were taken as {ASSUMED_SIZE}; --shape {name}="
            f"{','.join(map(str, shapes[name][target.by_name(name).has_rows :]))} sets them"
            for name in assumed
        ]
        arrays, told = drawn(target, job.rows, shapes, job.settings.seed), "drawn"
    requests = made(target, arrays, job.rows, host=server.host, headers=job.headers, binary=job.binary)
    setup = Setup(*server.address, requests, job.rows, list(target.outputs), job.timeout_s)
    return setup, notes, f"{told}, {len(requests)} different requests"


def _try_one(process: LoadProcess, stopped: Callable[[], bool]) -> None:
    """One request before all others: where the fault is in what is asked, no load is needed to find it."""
    run_load(process, Load(1, None, 1), lambda seen: None, stopped)
    for what, failure in process.seen.failures.items():
        if what == "wrong answer" or (what.isdigit() and int(what) < _SERVERS_FAULT and int(what) != _TOO_MANY):
            raise BenchFailed(f"no request succeeds: {what}: {failure.said}")


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C; the second ends the command at once."""
    seen = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
