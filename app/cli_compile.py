"""`bitserve compile`: a model file becomes a checked version, here or on a server, with its progress in view."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from app.store.bucket import is_address
from app.terminal import fail, read_settings
from app.words import printable
from engines.errors import EngineError
from engines.request import MAX_SPEC_BYTES, BuildRequest
from engines.spec import Spec, encode_spec

__all__ = ["compile_model"]


def _option(flag: str, text: str, **keys: Any) -> Any:
    return typer.Option(flag, help=text, show_default=False, **keys)


def compile_model(
    file: Annotated[Path, typer.Argument(help="A single-file ONNX model.", metavar="FILE", show_default=False)],
    name: Annotated[str, _option("--name", "Name of the model.")],
    repository: Annotated[
        str | None,
        _option("--repository", "Folder to add a version to, made if need be; or a store: s3://...", metavar="FOLDER"),
    ] = None,
    server: Annotated[str, _option("--server", "Have this server build and serve it.", metavar="URL")] = "",
    token: Annotated[
        str, _option("--token", "Admin token of that server.", envvar="BITSERVE_ADMIN_TOKEN", show_envvar=True)
    ] = "",
    calibration: Annotated[
        Path | None, _option("--calibration", ".npz of input names to arrays, first axis = samples.", metavar="FILE")
    ] = None,
    validation: Annotated[
        Path | None, _option("--validation", "The same, with labels or targets.", metavar="FILE")
    ] = None,
    spec: Annotated[
        str, _option("--spec", "What is asked, as JSON or a file of it; flags go above it.", metavar="JSON|FILE")
    ] = "",
    precision: Annotated[str | None, _option("--precision", "auto, or one precision.")] = None,
    metric: Annotated[str | None, _option("--metric", "top1, top5, f1, rmse, mae or cosine.")] = None,
    accuracy_budget: Annotated[
        float | None, _option("--accuracy-budget", "Largest loss allowed, absolute, in the metric's unit.")
    ] = None,
    objective: Annotated[str | None, _option("--objective", "throughput, latency or size.")] = None,
    search: Annotated[
        str | None, _option("--search", "greedy, grid, random, bayesian or genetic: which layers stay in float.")
    ] = None,
    trials: Annotated[int | None, _option("--trials", "Engines that the search may try.")] = None,
    time_limit_s: Annotated[float | None, _option("--time-limit-s", "Seconds for trying engines beside FP32.")] = None,
    seed: Annotated[int | None, _option("--seed", "Of the search.")] = None,
    calibrator: Annotated[
        str | None, _option("--calibrator", "minmax, mean_minmax, percentile or mse: ranges from samples.")
    ] = None,
    sparsity: Annotated[str | None, _option("--sparsity", "2:4, or channels: what is pruned.")] = None,
    targets: Annotated[
        str | None, _option("--targets", "What to compile for: openvino,tensorrt-rtx,tensorrt or some of these.")
    ] = None,
    max_batch: Annotated[int | None, _option("--max-batch", "Largest batch, rows.")] = None,
    as_json: Annotated[
        bool, _option("--json", "Print the report as JSON on stdout; the build's status where there is none.")
    ] = False,
) -> None:  # fmt: skip
    """Compile a model and add it as a new version, checked: to a folder, or to a running server."""
    flags = {
        "precision": precision, "metric": metric, "accuracy_budget": accuracy_budget, "objective": objective,
        "search": search, "trials": trials, "time_limit_s": time_limit_s, "seed": seed, "calibrator": calibrator,
        "sparsity": sparsity, "targets": targets.split(",") if targets else None, "max_batch": max_batch,
    }  # fmt: skip
    if (repository is None) == (not server):
        fail("give --repository FOLDER to compile here, or --server URL to have it built there")
    for path in (file, calibration, validation):
        if path is not None and not path.is_file():
            fail(f"{path} is not a file")
    asked = _spec_of(spec, {key: value for key, value in flags.items() if value is not None})
    request = BuildRequest(file, None, calibration, validation)
    try:
        with _progress(name) as show:
            if repository is None:
                done = _there(server.rstrip("/"), token, name, request, asked, show)
            else:
                done = _here(repository, name, request, asked, show)
    except EngineError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}")
    for warning in done.warnings:
        print(f"bitserve: {printable(warning)}", file=sys.stderr)
    print(json.dumps(done.document) if as_json else printable(done.line))


class _Done(NamedTuple):
    """The document for `--json`, the line without, and what goes to stderr in both cases."""

    document: Any
    line: str
    warnings: Sequence[str]


def _spec_of(text: str, flags: dict[str, Any]) -> Spec:
    """What `--spec` says, and the flags above it."""
    from app.specs import read_spec

    if text and not text.lstrip().startswith("{"):
        try:
            with open(text, "rb") as file:
                text = file.read(MAX_SPEC_BYTES).decode()
        except (OSError, ValueError) as error:
            fail(
                f"--spec {text[:60]}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}; expected JSON or a file"
            )
    try:
        document = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        fail(f"--spec is no JSON: {error}")
    try:
        return read_spec(json.dumps({**document, **flags} if isinstance(document, dict) else document))
    except EngineError as error:
        fail(str(error))


def _here(folder: str, name: str, request: BuildRequest, asked: Spec, show: Callable[[str, int], None]) -> _Done:
    from app.builds.local import compile_here
    from app.builds.state import percent_of

    percent = 0

    def advance(stage: str, share: float) -> None:
        nonlocal percent
        percent = percent_of(stage, share, percent)
        show(stage, percent)

    logging.getLogger("app").addHandler(logging.NullHandler())  # what it would say there, the error says
    kept = {} if is_address(folder) else {"cache": Path(folder, ".cache")}
    settings = read_settings(repository=folder, **kept)
    with _with_spec(_without_links(request), asked) as whole:
        done = compile_here(settings, name, whole, advance)
    advance("done", 0.0)
    status = {
        "model": name, "version": done.version, "state": "succeeded", "stage": "done", "percent": 100, "error": None,
        "sha256": done.manifest.source.sha256, "size_bytes": done.manifest.source.size_bytes, "report": None,
    }  # fmt: skip
    document = json.loads(done.report) if done.report else status
    return _Done(document, f"{name} version {done.version}: {done.place}", done.warnings)


def _there(
    server: str, token: str, name: str, request: BuildRequest, asked: Spec, show: Callable[[str, int], None]
) -> _Done:
    from app.builds.state import is_served_instead
    from app.sending import build_there

    status, report = build_there(server, token, name, request, asked, show)
    warnings = [line for line in status.get("log", ()) if is_served_instead(line)]
    return _Done(report or status, f"{name} version {status['version']} serves at {server}", warnings)


def _without_links(request: BuildRequest) -> BuildRequest:
    """A link that is named on the command line is the caller's own, and followed; no build follows any."""
    calibration, validation = (path and path.resolve() for path in (request.calibration, request.validation))
    return BuildRequest(request.source.resolve(), request.spec, calibration, validation)


@contextlib.contextmanager
def _with_spec(request: BuildRequest, asked: Spec) -> Iterator[BuildRequest]:
    """The request with its spec in a file of its own, while it is needed."""
    if asked == Spec():
        yield request
        return
    with tempfile.TemporaryDirectory(prefix="bitserve-spec-") as folder:
        file = Path(folder, "spec.json")
        file.write_bytes(encode_spec(asked))
        yield BuildRequest(request.source, file, request.calibration, request.validation)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[str, int], None]]:
    """A live line on stderr, where that is a terminal: the stage, a bar, the percent, the time. Nothing of it stays."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=100)

        def show(stage: str, percent: int) -> None:
            progress.update(task, description=printable(f"{name}: {stage}"), completed=percent, refresh=True)

        yield show
