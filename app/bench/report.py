"""What was measured as one document: what `--json` prints, and tables and plots are made of. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.bench.percentiles import latency_ms
from app.bench.sweep import Measured

__all__ = ["level_document", "notes_of"]

_LATE_MS = 0.5
_LATE_SHARE = 0.1
_BUSY = 0.9
_FEW_FOR = (("p99", 100), ("p99.9", 1000))
"""Of fewer answers than these, the percentile is the slowest one."""


def level_document(measured: Measured, connections: int) -> dict[str, Any]:
    """One level: milliseconds, requests and rows a second. What the server did not tell is None."""
    seen, ended, level = measured.seen, measured.ended, measured.level
    answers = len(seen.latencies_ns)
    seconds = ended.seconds or 1e-9
    latency = latency_ms(seen.latencies_ns)
    document: dict[str, Any] = {
        "concurrency": level.concurrency, "rate_per_s": level.rate, "seconds": round(ended.seconds, 4),
        "requests": max(measured.due, answers + _failed_requests(measured)), "answers": answers,
        "failures": {what: {"count": f.count, "first": f.said} for what, f in seen.failures.items()},
        "requests_per_s": round(seen.in_time / seconds, 2), "rows_per_s": round(seen.in_time_rows / seconds, 2),
        "latency_ms": latency,
        "server": _server(measured, latency),
        "driver": {
            "cpu_us_per_request": round(ended.cpu_s * 1e6 / max(1, ended.sent), 2),
            "cpu_share": round(ended.cpu_s / seconds, 4), "connections": ended.connections,
            "late_ms": _late(measured),
        },
    }  # fmt: skip
    document["notes"] = notes_of(document, measured, connections)
    return document


def _failed_requests(measured: Measured) -> int:
    """Without what was no request: a connection that did not come about."""
    return sum(failure.count for what, failure in measured.seen.failures.items() if what != "no connection")


def _server(measured: Measured, latency: dict[str, float] | None) -> dict[str, Any] | None:
    """The parts of a mean request add up to the mean latency: `other_ms` is HTTP, the network and this client."""
    share = measured.share
    if share is None or latency is None:
        return None
    return {
        "requests": share.requests, "request_ms": share.request_ms, "queue_ms": share.queue_ms,
        "compute_ms": share.compute_ms,
        "other_ms": round(max(0.0, latency["mean"] - share.queue_ms - share.all_compute_ms), 4),
        "batches": sum(share.batches.values()), "mean_batch_rows": round(share.mean_batch_rows, 3),
        "batch_rows": {str(rows): count for rows, count in share.batches.items()},
    }  # fmt: skip


def _late(measured: Measured) -> dict[str, float] | None:
    """How late this program looked at what was due; None in a closed loop."""
    lates = np.asarray(measured.seen.lates_ns, np.int64)
    if not lates.size:
        return None
    p50, p99 = np.percentile(lates, [50, 99], method="inverted_cdf") / 1e6
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4), "max": round(float(lates.max()) / 1e6, 4)}


def notes_of(document: dict[str, Any], measured: Measured, connections: int) -> list[str]:
    """What a reader of the figures has to know, a sentence each."""
    notes, driver, latency = [], document["driver"], document["latency_ms"]
    late, level = driver["late_ms"], measured.level
    if measured.ended.gone:
        notes.append(f"{level}: the server took no connection any more; the run was ended")
    if late is not None and latency is not None and late["p99"] > max(_LATE_MS, _LATE_SHARE * latency["p50"]):
        notes.append(
            f"{level}: the driver itself did not keep the rate: it was {late['p99']:.2f} ms late at the 99th "
            "percentile, which the latencies include"
        )
    if driver["cpu_share"] > _BUSY:
        notes.append(
            f"{level}: the driver was busy {100 * driver['cpu_share']:.0f} % of the time and may be what limits; "
            "the server may do more"
        )
    if level.rate is not None and driver["connections"] >= connections:
        notes.append(f"{level}: all {connections} connections were open; requests waited for one (--connections)")
    if document["server"] is not None and document["server"]["requests"] > document["requests"]:
        others = document["server"]["requests"] - document["requests"]
        notes.append(f"{level}: the server answered {others} requests of others meanwhile; its figures include them")
    few = next(((name, least) for name, least in _FEW_FOR if document["answers"] < least), None)
    if few is not None and latency is not None:
        notes.append(f"{level}: of {document['answers']} answers (fewer than {few[1]}) {few[0]} is the slowest")
    return notes
