"""The load of a trial: when each request is due, and how many rows it has. Drawn, or read from a recording.

A recording is one of three, told apart by what its first line looks like:

- JSON lines `{"at_s": 0.0125, "rows": 1}`: seconds from any beginning, and rows, in any order;
- CSV with the header `at_s,rows` and the same two numbers a line;
- the log of a server that ran with `--access-log`: its lines for one model (`received_s`, `rows`). Calls that were
  refused before they were read have no rows, and are left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from app.bench.arrivals import poisson_s
from app.tune.errors import TuneFailed

__all__ = ["MAX_ARRIVALS", "Load", "drawn", "recorded"]

MAX_ARRIVALS = 1_000_000
_MAX_ROWS = 65536
_MAX_LINE = 65536
_EXAMPLE = 'expected JSON lines {"at_s": 0.0125, "rows": 1}, CSV with the header at_s,rows, or the log of a server'
Arrival = tuple[float, int]


@dataclass(frozen=True)
class Load:
    """`due_s`: float64 [n], ascending from 0. `rows`: int64 [n]. `source` says in words where it is from."""

    due_s: np.ndarray
    rows: np.ndarray
    source: str

    @property
    def seconds(self) -> float:
        """From the first request to the last, at least a millisecond."""
        return max(1e-3, float(self.due_s[-1]))

    @property
    def total_rows(self) -> int:
        return int(self.rows.sum())


def drawn(rate_per_s: float, rows: int, seconds: float, seed: int) -> Load:
    """Poisson arrivals of `rows` rows each. Raises TuneFailed where there would be none, or too many."""
    if rate_per_s * seconds > MAX_ARRIVALS:
        raise TuneFailed(f"{rate_per_s:g} requests/s for {seconds:g} s are more than {MAX_ARRIVALS} requests; ask less")
    due_s = poisson_s(rate_per_s, seconds, None, seed)
    if not due_s.size:
        raise TuneFailed(f"no request came of {rate_per_s:g} requests/s in {seconds:g} s; give a higher --rate")
    words = f"{rate_per_s:g} requests/s of {rows} row{'s' if rows > 1 else ''}, Poisson"
    return Load(due_s - due_s[0], np.full(due_s.size, rows, np.int64), words)


def recorded(path: Path, model: str, seconds: float | None = None) -> Load:
    """The requests of a file, from its first on; `seconds` cuts it there. Raises TuneFailed where it is none."""
    arrivals: list[Arrival] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for arrival in _arrivals(_lines(file), model):
                arrivals.append(arrival)
                if len(arrivals) > MAX_ARRIVALS:
                    raise TuneFailed(f"{path.name} has more than {MAX_ARRIVALS} requests; give --load a part of it")
    except OSError as error:
        raise TuneFailed(f"--load {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TuneFailed(f"--load {path.name}: it is not UTF-8; {_EXAMPLE}") from error
    except ValueError as error:
        raise TuneFailed(f"--load {path.name}: {error}; {_EXAMPLE}") from error
    if not arrivals:
        raise TuneFailed(f"--load {path.name}: no request to {model!r} in it; {_EXAMPLE} that ran with --access-log")
    arrivals.sort()
    due_s = np.array([at_s for at_s, _ in arrivals], np.float64)
    rows = np.array([count for _, count in arrivals], np.int64)
    due_s -= due_s[0]
    kept = due_s <= (math.inf if seconds is None else seconds)
    return Load(due_s[kept], rows[kept], f"recorded in {path.name}")


def _lines(file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"line {number} has more than {_MAX_LINE} characters")
        if line.strip():
            yield line


def _arrivals(lines: Iterator[str], model: str) -> Iterator[Arrival]:
    """ValueError names the line that is none."""
    first = next(lines, "")
    if first.replace(" ", "").strip().lower() == "at_s,rows":
        for number, cells in enumerate(csv.reader(lines), start=2):
            if len(cells) != 2:
                raise ValueError(f"row {number} has {len(cells)} values")
            yield _arrival(cells[0], cells[1], f"row {number}")
        return
    for number, line in enumerate(chain([first] if first else [], lines), start=1):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            if number > 1 and not line.lstrip().startswith("{"):
                continue  # a library's own words among the lines of a log
            raise ValueError(f"line {number} is no JSON") from None
        if not isinstance(document, dict):
            raise ValueError(f"line {number} is no JSON object")
        if "at_s" in document:
            yield _arrival(document["at_s"], document.get("rows"), f"line {number}")
        elif "message" not in document:
            raise ValueError(f"line {number} has no at_s")
        elif document["message"] == "infer" and document.get("model") == model and document.get("rows"):
            yield _arrival(document.get("received_s"), document["rows"], f"line {number}")


def _arrival(at_s: object, rows: object, where: str) -> Arrival:
    try:
        moment, count = float(at_s), int(rows)  # type: ignore[arg-type,call-overload]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where} has no numbers: {str(at_s)[:40]}, {str(rows)[:40]}") from None
    if not math.isfinite(moment) or not 1 <= count <= _MAX_ROWS:
        raise ValueError(f"{where} is at {moment:g} s with {count} rows; expected a time and 1 to {_MAX_ROWS} rows")
    return moment, count
