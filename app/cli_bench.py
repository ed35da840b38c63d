"""`bitserve bench`: load on a running server, and what it measured: latency, throughput, queue and compute, batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from app.terminal import fail

__all__ = ["bench_model"]

_INTERRUPTED = 130
_DEFAULT_LEVELS = "1,4,16,64"
_MOST_CONNECTIONS = 4096


def _option(*flags: str, text: str, **keys: Any) -> Any:
    return typer.Option(*flags, help=text, **keys)


def _number(flag: str, text: str, least: float, most: float | None = None, **keys: Any) -> Any:
    kind = "INTEGER" if isinstance(least, int) else "NUMBER"
    return typer.Option(flag, help=text, min=least, max=most, metavar=kind, **keys)


def bench_model(
    model: Annotated[str, typer.Argument(help="Model name.", show_default=False)],
    url: Annotated[str, _option("--url", text="Server to drive.")] = "http://127.0.0.1:8000",
    version: Annotated[str, _option("--version", text="Version; the newest that serves if not given.")] = "",
    concurrency: Annotated[
        str | None,
        _option(
            "--concurrency", "-c", metavar="N,N,...", show_default=_DEFAULT_LEVELS,
            text="Closed loop: so many connections, each sends its next request when it has its answer.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        _option(
            "--rate", metavar="N,N,...", show_default=False,
            text="Open loop instead: so many requests a second, whether or not answers keep up. Latency counts from "
            "when a request was due.",
        ),
    ] = None,
    arrivals: Annotated[
        str, _option("--arrivals", text="Of an open loop: poisson or constant.", metavar="NAME")
    ] = "poisson",
    connections: Annotated[
        int, _number("--connections", "The most connections of an open loop.", 1, _MOST_CONNECTIONS)
    ] = 256,
    duration: Annotated[
        float | None, _number("--duration", "Seconds of each level.", 0.1, 86400, show_default="5")
    ] = None,
    requests: Annotated[
        int | None, _number("--requests", "Or requests of each level.", 1, 100_000_000, show_default=False)
    ] = None,
    warmup: Annotated[float, _number("--warmup", "Seconds of load before each level, not counted.", 0.0, 3600)] = 1,
    rows: Annotated[int, _number("--rows", "Rows of a request.", 1, 65536)] = 1,
    binary: Annotated[bool, _option("--binary", text="Send and ask for tensors as bytes, not as JSON.")] = False,
    inputs: Annotated[
        list[str] | None,
        _option(
            "--input", "-i", metavar="NAME=FILE",
            text="Values instead of drawn ones: NAME=FILE.npy, FILE.npz or FILE.json (all inputs), or NAME=[[...]]. "
            "Requests take its rows in turn.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        _option("--shape", metavar="NAME=N,N,...", text="Sizes of an input without its rows, where they are variable."),
    ] = None,
    header: Annotated[
        list[str] | None, _option("--header", "-H", metavar="'NAME: VALUE'", text="Header of every request.")
    ] = None,
    timeout_s: Annotated[
        float, _number("--timeout-s", "Time for an answer; what takes longer has failed.", 0.01, 3600)
    ] = 10,
    seed: Annotated[int, _number("--seed", "Of arrivals and drawn inputs.", 0, 2**32 - 2)] = 0,
    plot: Annotated[
        Path | None, _option("--plot", text="Draw the figures into this file.", metavar="FILE.svg", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, _option("--json", text="Print one JSON document on stdout and nothing else there.")
    ] = False,
) -> None:  # fmt: skip
    """Drive a running server: latency percentiles, throughput, queue and compute time, batch sizes.

    Ctrl-C ends it with what was measured so far.
    """
    from app.bench.errors import BenchFailed
    from app.bench.flags import headers_of, levels_of, sizes_of
    from app.bench.job import Job, run_job
    from app.bench.sweep import Settings

    if arrivals not in ("poisson", "constant"):
        fail(f"--arrivals {arrivals}: expected poisson or constant")
    if duration is not None and requests is not None:
        fail("give --duration or --requests, not both")
    if version and not (version.isascii() and version.isdigit()):
        fail(f"--version {version}: expected digits")
    for flag, number in (("duration", duration), ("warmup", warmup), ("timeout-s", timeout_s)):
        if number is not None and not math.isfinite(number):
            fail(f"--{flag} {number}: expected a finite number")
    if plot is not None:
        _check_plot(plot)
    seconds = None if requests is not None else 5.0 if duration is None else duration
    try:
        levels = levels_of(_DEFAULT_LEVELS if concurrency is None and rate is None else concurrency, rate)
        job = Job(
            model, version, url, levels, Settings(seconds, requests, warmup, connections, arrivals, seed),  # type: ignore[arg-type]
            rows, binary, tuple(inputs or ()), sizes_of(shape or ()), headers_of(header or ()), timeout_s,
        )  # fmt: skip
        document = run_job(job)
    except BenchFailed as error:
        fail(str(error))
    _finish(document, plot, as_json)


def _check_plot(plot: Path) -> None:
    """Before minutes of load, not after them."""
    if plot.suffix.lower() != ".svg":
        fail(f"--plot {plot}: expected a name that ends in .svg")
    if not plot.parent.is_dir():
        fail(f"--plot {plot}: there is no folder {plot.parent}")


def _finish(document: dict[str, Any], plot: Path | None, as_json: bool) -> None:
    """What was measured is printed and drawn even where it is a failure; then the exit code says so."""
    from app.bench.table import print_document

    if as_json:
        print(json.dumps(document), flush=True)
    elif document["levels"]:
        print_document(document)
    answers = sum(level["answers"] for level in document["levels"])
    if plot is not None and answers:
        from app.bench.plot import draw

        try:
            draw(document, plot)
        except OSError as error:
            fail(f"--plot {plot}: {error.strerror}")
    if document["interrupted"]:
        raise typer.Exit(_INTERRUPTED)
    if not answers:
        failures = [(f["count"], what, f["first"]) for one in document["levels"] for what, f in one["failures"].items()]
        _, what, said = max(failures, default=(0, "none was sent", ""))
        fail(f"no request succeeded: {what} {said}".strip())
