"""The load of a trial on a server on loopback: requests at their own times, or as fast as they are answered."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from app.bench.arrivals import Closed, Open
from app.bench.driver import Address, Driver
from app.bench.seen import Seen
from app.tune.inputs import Requests

__all__ = ["Replayed", "replay", "saturate"]

_HOST = "127.0.0.1"
_GRACE_S = 10.0
"""How long an answer may take, and a request may wait for a connection after the last one was due."""
_NS = 1e9


@dataclass(frozen=True)
class Replayed:
    """`latencies_ms`: float64, of the answers with status 200, in order of arrival. `why` says how most of the failures
    failed. `late_ms`: how late this program came to the requests, at the 99th percentile.
    """

    latencies_ms: np.ndarray
    failures: int
    why: str
    rows: int
    seconds: float
    late_ms: float


async def replay(port: int, requests: Requests, due_s: np.ndarray, connections: int) -> Replayed:
    """Send request i at `due_s[i]` seconds from now; latency counts from then."""
    seen, driver = Seen(), Driver(Address(_HOST, port), requests, connections, _GRACE_S)
    dues_ns = array("q", np.round(due_s * _NS).astype(np.int64).tobytes())
    try:
        seconds = await driver.run(Open(dues_ns, None, round(_GRACE_S * _NS)), seen)
    finally:
        await driver.close()
    latencies_ms = np.array(seen.latencies_ns, np.float64) / 1e6
    late_ms = float(np.percentile(seen.lates_ns, 99)) / 1e6 if seen.lates_ns else 0.0
    failures = len(due_s) - len(latencies_ms)
    return Replayed(latencies_ms, failures, seen.first_failure() if failures else "", seen.rows, seconds, late_ms)


async def saturate(port: int, requests: Requests, in_flight: int, seconds: float, connections: int) -> float:
    """Rows a second with `in_flight` requests always under way, as far as there are connections for them."""
    seen, driver = Seen(), Driver(Address(_HOST, port), requests, min(in_flight, connections), _GRACE_S)
    try:
        spent_s = await driver.run(Closed(seconds), seen)
    finally:
        await driver.close()
    return seen.in_time_rows / max(1e-9, spent_s)
