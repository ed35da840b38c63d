"""What the server itself counted while a level ran: the difference of two readings of the statistics extension.

That one of its two pages is exact: durations are sums, and batches are counted by their very number of rows. Triton has
the same page. Where there is none, `read` says None and the columns are left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from app.bench.errors import BenchFailed
from app.bench.target import Server

__all__ = ["Counted", "Share", "between", "read"]


class _Duration(msgspec.Struct):
    count: int = 0
    ns: int = 0


class _Inference(msgspec.Struct):
    success: _Duration
    queue: _Duration
    compute_input: _Duration
    compute_infer: _Duration
    compute_output: _Duration


class _Batch(msgspec.Struct):
    batch_size: int
    compute_infer: _Duration


class _Version(msgspec.Struct):
    inference_stats: _Inference
    batch_stats: list[_Batch] = msgspec.field(default_factory=list)


class _Page(msgspec.Struct):
    model_stats: list[_Version]


_SUMS = ("success", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Counted:
    """Sums of all versions: nanoseconds by what took them, requests that succeeded, batches by their rows."""

    ns: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    batches: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Share:
    """Means of a request in milliseconds (each is charged its whole batch, as Triton does), and batches by rows."""

    requests: int
    request_ms: float
    queue_ms: float
    compute_ms: dict[str, float]
    batches: dict[int, int]

    @property
    def mean_batch_rows(self) -> float:
        return sum(rows * count for rows, count in self.batches.items()) / max(1, sum(self.batches.values()))

    @property
    def all_compute_ms(self) -> float:
        return sum(self.compute_ms.values())


def read(server: Server, path: str) -> Counted | None:
    """Of the model at `path` below /v2; None where the server does not say."""
    try:
        status, document = server.get(f"{path}/stats")
        page = msgspec.convert(document, _Page) if status == 200 else None
    except (BenchFailed, msgspec.ValidationError):
        return None
    if page is None:
        return None
    ns: Counter[str] = Counter()
    batches: Counter[int] = Counter()
    for version in page.model_stats:
        for name in _SUMS:
            ns[name] += getattr(version.inference_stats, name).ns
        for batch in version.batch_stats:
            batches[batch.batch_size] += batch.compute_infer.count
    return Counted(dict(ns), sum(v.inference_stats.success.count for v in page.model_stats), batches)


def between(before: Counted | None, after: Counted | None) -> Share | None:
    """None where one is missing, nothing succeeded meanwhile, or counters went back: the model was loaded anew."""
    if before is None or after is None:
        return None
    requests = after.requests - before.requests
    spent_ns = {name: after.ns.get(name, 0) - before.ns.get(name, 0) for name in _SUMS}
    batches = {rows: after.batches[rows] - before.batches[rows] for rows in sorted(after.batches | before.batches)}
    if requests <= 0 or min(spent_ns.values()) < 0 or min(batches.values(), default=0) < 0:
        return None
    ms = {name: round(total / requests / 1e6, 4) for name, total in spent_ns.items()}
    compute = {phase: ms[f"compute_{phase}"] for phase in ("input", "infer", "output")}
    return Share(requests, ms["success"], ms["queue"], compute, {rows: n for rows, n in batches.items() if n})
