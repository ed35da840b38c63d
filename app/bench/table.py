"""The figures of a run on a terminal, or as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from app.bench.percentiles import NAMES
from app.bench.words import grouped, heading, level_name
from app.words import printable

__all__ = ["print_document", "results"]

_PLAIN_COLUMNS = 120
_MOST_GROUPS = 5


def print_document(document: dict[str, Any]) -> None:
    """On stdout."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=_PLAIN_COLUMNS)
    console.print(Text(printable(heading(document)), style="bold"))
    console.print(results(document["levels"]))
    for note in [*document["notes"], *(note for level in document["levels"] for note in level["notes"])]:
        console.print(Text(printable(f"note: {note}")))


def results(levels: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Latency and throughput; then, where the server told, where the time went and how large batches were."""
    parts: list[RenderableType] = [_latencies(levels)]
    if any(level["server"] is not None for level in levels):
        parts.append(_shares(levels))
    if any(level["failures"] for level in levels):
        parts.append(_failures(levels))
    return Group(*parts)


def _failures(levels: Sequence[Mapping[str, Any]]) -> Table:
    right = [Column(name, justify="right") for name in (_unit(levels[0]), "count")]
    table = Table(right[0], "failure", right[1], "said first", box=SIMPLE, pad_edge=False)
    for level in levels:
        for what, failure in level["failures"].items():
            table.add_row(level_name(level), what, str(failure["count"]), Text(printable(failure["first"])))
    return table


def _latencies(levels: Sequence[Mapping[str, Any]]) -> Table:
    has_rows = any(level["rows_per_s"] != level["requests_per_s"] for level in levels)
    names = [_unit(levels[0]), "requests/s", *(["rows/s"] if has_rows else []), *NAMES, "max ms", "failed"]
    table = Table(*(Column(name, justify="right", no_wrap=True) for name in names), box=SIMPLE, pad_edge=False)
    for level in levels:
        latency = level["latency_ms"] or {}
        failed = sum(failure["count"] for failure in level["failures"].values())
        table.add_row(
            level_name(level), _rate(level["requests_per_s"]), *([_rate(level["rows_per_s"])] if has_rows else []),
            *(_ms(latency.get(name)) for name in (*NAMES, "max")),
            Text(str(failed), style="red" if failed else ""),
        )  # fmt: skip
    return table


def _shares(levels: Sequence[Mapping[str, Any]]) -> Table:
    """`other` is the mean latency less queue and compute."""
    table = Table(
        *(Column(name, justify="right", no_wrap=True)
          for name in (_unit(levels[0]), "queue ms", "compute ms", "other ms", "rows a batch")),
        Column("batches by rows"), box=SIMPLE, pad_edge=False,
    )  # fmt: skip
    for level in levels:
        server = level["server"]
        if server is None:
            table.add_row(level_name(level), *["-"] * 4, "")
            continue
        compute = sum(server["compute_ms"].values())
        table.add_row(
            level_name(level), _ms(server["queue_ms"]), _ms(compute), _ms(server["other_ms"]),
            f"{server['mean_batch_rows']:.1f}", _distribution(server["batch_rows"]),
        )  # fmt: skip
    return table


def _distribution(batch_rows: Mapping[str, int]) -> str:
    groups = grouped({int(rows): count for rows, count in batch_rows.items()}, _MOST_GROUPS)
    total = sum(groups.values())
    return "  ".join(f"{name}: {100 * count / total:.0f}%" for name, count in groups.items())


def _unit(level: Mapping[str, Any]) -> str:
    return "concurrency" if level["concurrency"] is not None else "rate/s"


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 100 else f"{per_s:.1f}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
