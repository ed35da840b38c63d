"""Normal requests that go on while something else happens: none of them may fail."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from tests.support.servers import Server

__all__ = ["Stream", "asking"]


@dataclass
class Stream:
    """First values of all answers, in order of arrival; texts of what was no answer."""

    seen: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def asking(server: Server, model: str, clients: int = 4) -> Iterator[Stream]:
    """Ask a `linear` model for a row of ones, over and over, from several connections."""
    stream, stop = Stream(), threading.Event()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{server.url}/v2/models/{model}/infer", json=body)
                except httpx.HTTPError as error:
                    stream.failed.append(repr(error))
                    continue
                if answer.status_code == 200:
                    stream.seen.append(answer.json()["outputs"][0]["data"][0])
                else:
                    stream.failed.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield stream
    finally:
        stop.set()
        for thread in threads:
            thread.join()
