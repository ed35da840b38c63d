"""`bitserve tune`: serving parameters of a model, searched against a load, on servers of this command's own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import fail, read_settings
from app.words import printable
from engines.errors import EngineError

if TYPE_CHECKING:
    from app.settings import Settings
    from app.tune.load import Load
    from app.tune.sampling import Search
    from app.tune.search import Found
    from app.tune.subject import Subject

__all__ = ["tune_model"]

_TERMINATED = 128 + signal.SIGTERM
_FEW = 300
"""Of fewer requests, the p99 is one of the three slowest."""


def _option(flag: str, text: str, **keys: Any) -> Any:
    return typer.Option(flag, help=text, **keys)


def _number(flag: str, text: str, least: float, most: float | None = None, **keys: Any) -> Any:
    kind = "INTEGER" if isinstance(least, int) else "NUMBER"
    return typer.Option(flag, help=text, min=least, max=most, metavar=kind, **keys)


def tune_model(
    model: Annotated[str, typer.Argument(help="Model name.", show_default=False)],
    repository: Annotated[
        Path | None, _option("--repository", "Folder of models.", metavar="FOLDER", show_default="model_repo")
    ] = None,
    rate: Annotated[
        float | None, _number("--rate", "Load: requests a second, Poisson arrivals.", 0.01, show_default=False)
    ] = None,
    rows: Annotated[int, _number("--rows", "Rows of each of them.", 1, 65536)] = 1,
    load: Annotated[
        Path | None,
        _option(
            "--load",
            'Or a recorded load: JSON lines {"at_s": 0.0125, "rows": 1} (seconds from any beginning), CSV with the '
            "header at_s,rows, or the log of a server that ran with --access-log.",
            metavar="FILE", show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        _number("--seconds", "Length of the load (of a recording: its beginning).", 0.1, show_default="5, or all"),
    ] = None,
    p99_ms: Annotated[
        float | None,
        _number(
            "--p99-ms", "Limit of the p99: the highest peak within it is chosen. The lowest p99 if not given.", 0.001,
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        str, _option("--search", "grid, random, bayesian or genetic.", metavar="NAME")
    ] = "bayesian",
    trials: Annotated[int, _number("--trials", "Settings to try, the current one among them.", 2, 1000)] = 20,
    time_limit_s: Annotated[
        float, _number("--time-limit-s", "Time for all of it; its last part is for the rounds.", 1.0, 86400)
    ] = 600,
    seed: Annotated[int, _number("--seed", "Of arrivals, inputs and search.", 0, 2**32 - 1)] = 0,
    write: Annotated[bool, _option("--write", "Write what was found better into the model's config.toml.")] = False,
    as_json: Annotated[
        bool, _option("--json", "Print one JSON document on stdout and nothing else there.")
    ] = False,
) -> None:  # fmt: skip
    """Find the streams, instances, batch size and queue delay that serve a load best, by serving it.

    Every setting is run by a server of its own on loopback. What wins is run again in turn with the current
    one before it is called better.
    """
    if (rate is None) == (load is None):
        fail("give the load: --rate REQUESTS_PER_SECOND, or --load FILE")
    from app.tune.errors import TuneFailed
    from app.tune.load import drawn, recorded
    from app.tune.sampling import SEARCHES

    if search not in SEARCHES:
        fail(f"--search {search}: expected one of {', '.join(SEARCHES)}")
    for flag, number in (("rate", rate), ("seconds", seconds), ("p99-ms", p99_ms), ("time-limit-s", time_limit_s)):
        if number is not None and not math.isfinite(number):
            fail(f"--{flag} {number}: expected a finite number")
    settings = read_settings(**({} if repository is None else {"repository": repository}))
    logging.getLogger("app").addHandler(logging.NullHandler())  # what it would say there, the error says
    try:
        with _ended_by_signals():
            if load is not None:
                arrivals = recorded(load, model, seconds)
            else:
                arrivals = drawn(rate or 0, rows, 5.0 if seconds is None else seconds, seed)
            _tune(settings, model, arrivals, p99_ms, search, trials, time_limit_s, seed, write, as_json)  # type: ignore[arg-type]
    except (EngineError, TuneFailed) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}")


def _tune(
    settings: Settings, model: str, load: Load, p99_ms: float | None, search: Search, trials: int, limit_s: float,
    seed: int, write: bool, as_json: bool,
) -> None:  # fmt: skip
    from app.temporary import own_folder
    from app.tune.config_edit import write_config
    from app.tune.errors import TuneFailed
    from app.tune.sampling import Sampler
    from app.tune.search import FINALISTS, ROUNDS
    from app.tune.search import search as run_search
    from app.tune.space import changes, preferred_of, space_of
    from app.tune.subject import opened
    from app.tune.trial import PEAK_S, Trials

    needed_s = (load.seconds + PEAK_S) * (2 + ROUNDS * (1 + FINALISTS))
    if needed_s > limit_s:
        raise TuneFailed(
            f"the load lasts {load.seconds:.1f} s, two trials and their rounds take {needed_s:.0f} s of it; "
            f"the limit is {limit_s:g} s: give less --seconds or more --time-limit-s"
        )
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(_progress(model, trials))
        subject = stack.enter_context(opened(settings, model, lambda what: show(what, 0)))
        folder = stack.enter_context(own_folder("tune"))
        space = space_of(
            subject.current, threads=subject.manifest.threads, proven_rows=subject.manifest.proof.rows,
            preferred=preferred_of(subject.config), rows=load.rows.tolist(), p99_limit_ms=p99_ms,
        )  # fmt: skip
        runner = Trials(subject, load, folder, connections=min(512, settings.max_connections), seed=seed)
        sampler = Sampler(space, search, seed=seed, trials=trials, p99_limit_ms=p99_ms)
        found = run_search(runner.run, sampler, trials, limit_s, p99_ms, show)
    wanted = changes(subject.current, found.best) if found.best is not None else {}
    if write and wanted:
        write_config(subject.config_file, subject.config_text, wanted)
    document = _document(subject, load, p99_ms, search, seed, found, wanted, write)
    if as_json:
        print(json.dumps(document))
    else:
        _show(document)


def _document(
    subject: Subject, load: Load, p99_ms: float | None, search: str, seed: int, found: Found,
    wanted: dict[tuple[str, ...], int], write: bool,
) -> dict[str, Any]:  # fmt: skip
    """What `--json` prints. `front` holds positions in `trials`, of which the first is the current configuration."""
    from dataclasses import asdict

    from app.tune.config_edit import lines_of
    from app.tune.verdict import front, medians_of

    kept = front(found.trials, p99_ms)
    return {
        "model": subject.model, "version": subject.version,
        "load": {
            "source": load.source, "requests": len(load.due_s), "rows": load.total_rows,
            "seconds": round(load.seconds, 3),
        },
        "p99_limit_ms": p99_ms, "search": search, "seed": seed,
        "trials": [trial.document() for trial in found.trials],
        "front": [found.trials.index(trial) for trial in kept],
        "rounds": [[trial.document() for trial in runs] for runs in found.rounds],
        "medians": [{**runs[0].parameters.document(), **asdict(medians_of(runs))} for runs in found.rounds if runs],
        "best": found.best.document() if found.best is not None else None,
        "config": lines_of(wanted), "written": bool(write and wanted),
        "verdict": _verdict(found, lines_of(wanted), bool(write and wanted)),
    }  # fmt: skip


def _verdict(found: Found, lines: str, written: bool) -> str:
    if found.unconfirmed:
        return "the time was up before the best settings could be measured again: nothing is called better"
    if found.best is None:
        return "nothing was found to be better than the current configuration"
    return f"better, in every round: {lines}" + ("; written to config.toml" if written else "; --write puts it there")


def _show(document: dict[str, Any]) -> None:
    """The front as a table, the current configuration beside it, and the verdict."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    load, trials = document["load"], document["trials"]
    limit = f", p99 limit {document['p99_limit_ms']:g} ms" if document["p99_limit_ms"] is not None else ""
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(
        printable(
            f"{document['model']} version {document['version']}: {load['source']}; {load['requests']} requests in "
            f"{load['seconds']:g} s, {len(trials)} settings tried{limit}"
        )
    )
    if load["requests"] < _FEW:
        console.print(f"of {load['requests']} requests, the p99 is one of the slowest few; a longer load says more")
    names = ("", "streams", "inst.", "batch", "delay us", "p50 ms", "p99 ms", "peak rows/s", "CPU ms/row", "failed")

    def table_of(title: str) -> Table:
        columns = [Column(name, overflow="fold", justify="right" if name else "left") for name in names]
        return Table(*columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0))

    table = table_of("front: p99 under the load against rows a second at the peak")
    for index in sorted({0, *document["front"]}, key=lambda at: trials[at]["p99_ms"]):
        name = " ".join([*(["current"] if index == 0 else []), *(["front"] if index in document["front"] else [])])
        table.add_row(name, *_cells(trials[index]["parameters"], trials[index]))
    console.print(table)
    failed = next((trial for trial in trials if trial["failures"]), None)
    if failed is not None:
        console.print(printable(f"{sum(bool(trial['failures']) for trial in trials)} settings failed: {failed['why']}"))
    if document["medians"]:
        again = table_of(f"measured again in turn: medians of {len(document['rounds'][0])} rounds")
        for index, medians in enumerate(document["medians"]):
            is_best = document["best"] is not None and all(medians[k] == v for k, v in document["best"].items())
            again.add_row("current" if index == 0 else "better" if is_best else "", *_cells(medians, medians))
        console.print(again)
    console.print(document["verdict"])


def _cells(setting: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    names = ("streams", "instances", "max_batch_size", "max_queue_delay_us")
    return [
        *(str(setting[name]) for name in names), f"{measured['p50_ms']:.2f}", f"{measured['p99_ms']:.2f}",
        f"{measured['peak_rows_per_s']:.0f}", f"{measured['cpu_ms_per_row']:.3f}", str(measured["failures"]),
    ]  # fmt: skip


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, too, unwinds what was begun: servers are ended and folders removed."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(model: str, trials: int) -> Iterator[Callable[[str, int], None]]:
    """A live line on stderr, where that is a terminal. Nothing of it stays."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from app.tune.search import FINALISTS, ROUNDS

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(model, total=trials + ROUNDS * (1 + FINALISTS))

        def show(what: str, done: int) -> None:
            progress.update(task, description=printable(f"{model}: {what}"), completed=done, refresh=True)

        yield show
