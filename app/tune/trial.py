"""One trial: a server of its own under one setting, the load replayed, then its peak. Blocking, bounded in time."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from app.bench.driver import run
from app.tune.errors import TuneFailed
from app.tune.inputs import Requests
from app.tune.load import Load
from app.tune.replay import Replayed, replay, saturate
from app.tune.server import serving
from app.tune.space import Parameters
from app.tune.subject import Subject
from app.tune.verdict import Measured

__all__ = ["PEAK_S", "Trials"]

PEAK_S = 1.5
_WARM_REQUESTS, _WARM_S = 40, 0.3
_LEAST_IN_FLIGHT, _MOST_IN_FLIGHT = 8, 128


class Trials:
    """Runs settings of one subject against one load, each in a folder of its own below `folder`."""

    def __init__(self, subject: Subject, load: Load, folder: Path, *, connections: int, seed: int) -> None:
        self._subject, self._load, self._folder, self._connections = subject, load, folder, connections
        self._requests = Requests(
            subject.model, subject.version, subject.manifest, load.rows.tolist(), len(load.due_s), seed
        )

    def run(self, parameters: Parameters) -> Measured:
        """Raises TuneFailed where the version cannot be served so, or takes none of the requests."""
        subject = self._subject
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            subject.place(Path(name), parameters)
            with serving(Path(name), subject.cache, subject.threads) as server:
                server.wait_ready(subject.model, subject.version)
                self._warm_up(server.port)
                before_s = server.cpu_s()
                replayed = run(replay(server.port, self._requests, self._load.due_s, self._connections))
                cpu_s = server.cpu_s() - before_s
                in_flight = _in_flight(parameters, int(self._load.rows.min()))
                peak = run(saturate(server.port, self._requests, in_flight, PEAK_S, self._connections))
        return _measured(parameters, replayed, cpu_s, peak)

    def _warm_up(self, port: int) -> None:
        due_s = np.linspace(0, _WARM_S, _WARM_REQUESTS)
        found = run(replay(port, self._requests, due_s, self._connections))
        if not found.latencies_ms.size:
            raise TuneFailed(f"the model answers no request of this load: {found.why}")


def _in_flight(parameters: Parameters, rows: int) -> int:
    """Requests enough for every instance to run one full batch while the next one waits."""
    whole = math.ceil(2 * parameters.instances * max(1, parameters.max_batch_size) / rows)
    return min(_MOST_IN_FLIGHT, max(_LEAST_IN_FLIGHT, whole))


def _measured(parameters: Parameters, found: Replayed, cpu_s: float, peak: float) -> Measured:
    """The percentiles are latencies that were measured (nearest rank), none between two of them."""
    p50, p99 = (
        np.percentile(found.latencies_ms, [50, 99], method="inverted_cdf") if found.latencies_ms.size else (0.0, 0.0)
    )
    return Measured(
        parameters, len(found.latencies_ms) + found.failures, found.failures, found.why, float(p50), float(p99),
        found.rows / found.seconds, peak, cpu_s * 1000 / max(1, found.rows), found.late_ms,
    )  # fmt: skip
