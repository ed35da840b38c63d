"""What a request costs, step by step: the real protocol, handler and engine on one loop, with a wire that is not there.

Steps are timed exclusively (a step within another counts for itself only) and then scaled to what a request takes where
nothing is timed. What sockets and the kernel add is the rest of a real server's CPU time under wrk.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
import uvloop
from pydantic import SecretStr
from uvicorn.server import ServerState

from app.http import codec
from app.http.infer import Exchange
from app.http.memo import Memo
from app.http.protocol import InferProtocol
from app.main import create_app
from app.serving import batcher
from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.gateway import Gateway
from app.serving.queue import Queue
from app.serving.stats import Stats
from app.settings import Settings
from benchmarks.load import binary_request, json_request
from benchmarks.peers.models import tiny
from engines.runtime.openvino import OpenVinoSlot
from tests.support.onnx_models import place

__all__ = ["run"]

COMMAND = "python -m benchmarks steps"
REQUESTS, ROUNDS = 4000, 9
TOGETHER = 16
STEPS: list[tuple[str, list[tuple[Any, str]]]] = [
    ("HTTP: recognise or parse the head, find the body", [(InferProtocol, "data_received")]),
    ("decode: JSON, tensors, what is wanted", [(Memo, "decode"), (codec, "decode")]),
    ("check against the model, ticket, queue", [(Gateway, "submit"), (Queue, "push"), (Queue, "take")]),
    ("decide what runs", [(Device, "_pump"), (Endpoint, "launch"), (Endpoint, "_completed")]),
    ("rows into the engine's buffers, views of them out", [(batcher, "gather"), (batcher, "scatter")]),
    ("the engine", [(OpenVinoSlot, "run")]),
    ("encode the answer", [(Exchange, "send"), (codec, "encode")]),
    ("its head, and handing it to the socket", [(InferProtocol, "write_answer")]),
    ("metrics", [(Stats, "answered"), (Stats, "executed")]),
]
"""Names of steps, and the functions whose time they are."""


class _Wire(asyncio.Transport):
    """Takes what is written, and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0

    def write(self, data: Any) -> None:
        self.answers += 1

    def writelines(self, list_of_data: Any) -> None:
        self.answers += 1

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Clock:
    """Exclusive time by step."""

    def __init__(self) -> None:
        self.spent_ns: dict[str, int] = defaultdict(int)
        self._stack: list[str] = []
        self._since_ns = 0

    def wrap(self, owner: Any, name: str, step: str) -> Callable[[], None]:
        """Time a function; what is returned puts the old one back."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            now_ns = time.perf_counter_ns()
            if self._stack:
                self.spent_ns[self._stack[-1]] += now_ns - self._since_ns
            self._stack.append(step)
            self._since_ns = time.perf_counter_ns()
            try:
                return inner(*args, **kwargs)
            finally:
                now_ns = time.perf_counter_ns()
                self.spent_ns[self._stack.pop()] += now_ns - self._since_ns
                self._since_ns = time.perf_counter_ns()

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, inner)


def _http(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def _turns(connections: list[InferProtocol], wires: list[_Wire], segment: bytes, count: int) -> float:
    """CPU microseconds a request: all connections ask at once, and again when all are answered."""
    began_ns = time.process_time_ns()
    for _ in range(count // len(connections)):
        want = wires[0].answers + 1
        for connection in connections:
            connection.data_received(segment)
        while any(wire.answers < want for wire in wires):
            await asyncio.sleep(0)
    return (time.process_time_ns() - began_ns) / 1e3 / count


async def _measured(repository: Path, segment: bytes, together: int) -> dict[str, float]:
    """Microseconds by step, and `whole`: medians of rounds."""
    settings = Settings(repository=repository, admin_token=SecretStr("for nobody"))
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while not app.state.gateway.registry.endpoints():
            await asyncio.sleep(0.05)  # it is compiled
        bound = InferProtocol.configure(app.state.handler, settings)
        config = uvicorn.Config(app, http=bound, ws="none", log_config=None)
        wires = [_Wire() for _ in range(together)]
        connections = [bound(config, ServerState(), {}) for _ in wires]
        for connection, wire in zip(connections, wires, strict=True):
            connection.connection_made(wire)
        rounds: list[dict[str, float]] = []
        await _turns(connections, wires, segment, REQUESTS)
        for _ in range(ROUNDS):
            whole_us = await _turns(connections, wires, segment, REQUESTS)
            clock = _Clock()
            undo = [clock.wrap(owner, name, step) for step, functions in STEPS for owner, name in functions]
            await _turns(connections, wires, segment, REQUESTS)
            for put_back in undo:
                put_back()
            total_ns = sum(clock.spent_ns.values())
            rounds.append({"whole": whole_us, **{s: whole_us * n / total_ns for s, n in clock.spent_ns.items()}})
        for connection in connections:
            connection.connection_lost(None)
    return {key: statistics.median(found.get(key, 0.0) for found in rounds) for key in rounds[0]}


def run() -> dict[str, Any]:
    """Binary and JSON, one at a time and together."""
    served = tiny()
    row = np.ones((1, *served.row), np.float32)
    path = f"/v2/models/{served.name}/infer"
    kinds = {"binary": binary_request(served.input, row, served.output), "JSON": json_request(served.input, row)}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        place(Path(name), served.name, served.model)
        for kind, request in kinds.items():
            segment = _http(path, *request)
            for together in (1, TOGETHER):
                found[f"{kind}, {together}"] = uvloop.run(_measured(Path(name), segment, together))
    return {"rows": [], "table": _table(found), "command": COMMAND, "us": found}


def _table(found: dict[str, dict[str, float]]) -> list[str]:
    """Markdown: a row for each step, a column for each way to ask."""
    lines = [f"| CPU time of a request, us | {' | '.join(f'{name} at once' for name in found)} |"]
    lines.append("|---|" + "---|" * len(found))
    for step in (*(step for step, _ in STEPS), "whole"):
        cells = " | ".join(f"{figures.get(step, 0.0):.1f}" for figures in found.values())
        lines.append(f"| {'all of these' if step == 'whole' else step} | {cells} |")
    return lines
