"""Requests at a fixed rate, whether or not answers keep up: latency counts from when a request was due."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

__all__ = ["OpenLoad", "open_loop"]

_WORKERS = 32


@dataclass(frozen=True)
class OpenLoad:
    """`failures` are answers other than 200. Latencies in ms."""

    requests: int
    failures: int
    p50_ms: float
    p99_ms: float


def open_loop(url: str, request: tuple[bytes, dict[str, str]], rate_per_s: float, seconds: float) -> OpenLoad:
    """Poisson arrivals (seeded) over keep-alive connections."""
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / rate_per_s, int(rate_per_s * seconds)))
    work: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    latencies_ms: list[float] = []
    failed: list[int] = []
    workers = [threading.Thread(target=_work, args=(url, request, work, latencies_ms, failed)) for _ in range(_WORKERS)]
    for worker in workers:
        worker.start()
    started = time.perf_counter()
    for moment in due:
        time.sleep(max(0.0, started + moment - time.perf_counter()))
        work.put(started + moment)
    for _ in workers:
        work.put(None)
    for worker in workers:
        worker.join()
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return OpenLoad(len(latencies_ms), len(failed), float(p50), float(p99))


def _work(
    url: str, request: tuple[bytes, dict[str, str]], work: queue.SimpleQueue[float | None], latencies_ms: list[float],
    failed: list[int],
) -> None:  # fmt: skip
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    body, headers = request
    while (due := work.get()) is not None:
        connection.request("POST", place.path, body, headers)
        answer = connection.getresponse()
        answer.read()
        latencies_ms.append((time.perf_counter() - due) * 1000)
        if answer.status != http.client.OK:
            failed.append(answer.status)
    connection.close()
