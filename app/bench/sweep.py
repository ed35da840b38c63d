"""Level after level: warm-up, a reading of the server's counters, the load, and another reading."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from app.bench.arrivals import Arrivals, constant_s, poisson_s
from app.bench.errors import BenchFailed
from app.bench.messages import Ended, Load
from app.bench.process import LoadProcess
from app.bench.seen import Seen
from app.bench.statistics import Counted, Share, between

__all__ = ["MOST_ARRIVALS", "Level", "Measured", "Phase", "Settings", "loads", "run_load", "sweep"]

MOST_ARRIVALS = 5_000_000
_NS, _NS_BYTES = 1_000_000_000, 8
Phase = Literal["warm-up", "measuring"]
Show = Callable[["Level", Phase, Seen], None]


@dataclass(frozen=True)
class Level:
    """Closed loop with `concurrency` requests always under way, or open loop with `rate` requests a second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        return f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Settings:
    """Of every level. One of `seconds` and `requests` is None; `connections` bounds those of an open loop."""

    seconds: float | None
    requests: int | None
    warmup_s: float
    connections: int
    arrivals: Arrivals
    seed: int


@dataclass(frozen=True)
class Measured:
    """One level. `due` requests were to be sent (open loop), else as many as were; `share` is the server's account."""

    level: Level
    seen: Seen
    ended: Ended
    due: int
    share: Share | None


def loads(settings: Settings, level: Level) -> tuple[Load | None, Load]:
    """The runs of a level, warm-up (if any) and the one that counts. Raises BenchFailed where they are too long."""
    if level.rate is None:
        count = level.concurrency or 1
        warm = Load(count, settings.warmup_s, None) if settings.warmup_s else None
        return warm, Load(count, settings.seconds, settings.requests)
    warm_s = settings.warmup_s
    warm = _open(settings, level.rate, warm_s, None, settings.seed + 1) if warm_s else None
    return warm, _open(settings, level.rate, settings.seconds, settings.requests, settings.seed)


def _open(settings: Settings, rate: float, seconds: float | None, requests: int | None, seed: int) -> Load:
    length_s = seconds if seconds is not None else (requests or 0) / rate
    if rate * length_s > MOST_ARRIVALS:
        raise BenchFailed(f"{rate:g} requests/s for {length_s:g} s are more than {MOST_ARRIVALS} requests; ask less")
    if settings.arrivals == "constant":
        due_s = constant_s(rate, length_s)
    else:
        due_s = poisson_s(rate, length_s if requests is None else None, requests, seed)
    if not due_s.size:
        raise BenchFailed(f"no request would be due of {rate:g} requests/s in {length_s:g} s; give more --duration")
    dues = array("q", np.round(due_s * _NS).astype(np.int64).tobytes())
    return Load(settings.connections, seconds, requests, dues.tobytes())


def sweep(
    process: LoadProcess, levels: Sequence[Level], settings: Settings, count: Callable[[], Counted | None], show: Show,
    stopped: Callable[[], bool],
) -> Iterator[Measured]:  # fmt: skip
    """The levels in turn, each as soon as it was measured. `show` is called as they go on.

    Where `stopped` becomes true, the level under way ends and is the last; so it is where the server is gone.
    """
    for level in levels:
        warm, load = loads(settings, level)
        if warm is not None:
            run_load(process, warm, partial(show, level, "warm-up"), stopped)
            if stopped():
                return
        before = count()
        ended = run_load(process, load, partial(show, level, "measuring"), stopped)
        share = between(before, count())
        due = len(load.dues) // _NS_BYTES if load.dues is not None and not stopped() else ended.sent
        yield Measured(level, process.seen, ended, due, share)
        if stopped() or ended.gone:
            return


def run_load(process: LoadProcess, load: Load, show: Callable[[Seen], None], stopped: Callable[[], bool]) -> Ended:
    """To its end, or until `stopped` becomes true. `show` is called at least ten times a second."""
    told = False
    for _ in process.run(load):
        show(process.seen)
        if stopped() and not told:
            told = True
            process.stop()
    assert process.ended is not None
    return process.ended
