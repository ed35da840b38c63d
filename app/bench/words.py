"""Words that tables, plots and lines share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["grouped", "heading", "level_name", "line"]

_MOST_GROUPS = 8


def heading(document: Mapping[str, Any]) -> str:
    """What was driven, and how."""
    rows = document["rows"]
    arrivals = f"open loop, {document['arrivals']} arrivals" if document["mode"] == "open" else "closed loop"
    return (
        f"{document['model']} version {document['version']} at {document['url']} ({document['server']}): {arrivals}, "
        f"{rows} row{'s' if rows > 1 else ''} a request, {'bytes' if document['binary'] else 'JSON'}, "
        f"inputs {document['inputs']}"
    )


def level_name(level: Mapping[str, Any]) -> str:
    """Its number."""
    return str(level["concurrency"]) if level["concurrency"] is not None else f"{level['rate_per_s']:g}"


def line(level: Mapping[str, Any]) -> str:
    """A level's figures in one line."""
    name = f"{level_name(level)} requests/s" if level["concurrency"] is None else f"concurrency {level_name(level)}"
    failed = sum(failure["count"] for failure in level["failures"].values())
    latency = level["latency_ms"]
    told = f", p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms" if latency else ""
    return f"{name}: {level['requests_per_s']:.0f} requests/s{told}, {failed} failed"


def grouped(batches: Mapping[int, int], most_groups: int = _MOST_GROUPS) -> dict[str, int]:
    """Batches by rows; where they have more sizes than that, in ranges up to powers of two. Ascending."""
    if len(batches) <= most_groups:
        return {str(rows): count for rows, count in sorted(batches.items())}
    ranges: dict[tuple[int, int], int] = {}
    for rows, count in sorted(batches.items()):
        most = 1 << (rows - 1).bit_length()
        key = (most // 2 + 1 if most > 1 else 1, most)
        ranges[key] = ranges.get(key, 0) + count
    return {f"{least}-{most}" if least < most else str(most): count for (least, most), count in ranges.items()}
