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
from collections.abc import Awaitable, Callable
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
from app.serving.limits import QueuePolicy
from app.serving.queue import Queue
from app.serving.stats import Stats
from app.settings import Settings
from benchmarks.load import binary_request, json_request
from benchmarks.peers.models import tiny
from engines.runtime.openvino import OpenVinoSlot
from tests.support.onnx_models import place

__all__ = ["run"]

COMMAND = "python -m benchmarks steps"
REQUESTS, ROUNDS, SLICES = 4000, 9, 60
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
    """Microseconds by step, and `whole`: medians of rounds; `counted`: the share of metrics, ids and deadlines."""
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
        turns = functools.partial(_turns, connections, wires)
        rounds = [await _round(turns, segment) for _ in range(1 + ROUNDS)][1:]
        shares = [await _share_counted(turns, segment) for _ in range(SLICES)]
        for connection in connections:
            connection.connection_lost(None)
    found = {key: statistics.median(one.get(key, 0.0) for one in rounds) for key in rounds[0]}
    return {**found, "counted": statistics.median(shares)}


async def _round(turns: Callable[[bytes, int], Awaitable[float]], segment: bytes) -> dict[str, float]:
    whole_us = await turns(segment, REQUESTS)
    clock = _Clock()
    undo = [clock.wrap(owner, name, step) for step, functions in STEPS for owner, name in functions]
    await turns(segment, REQUESTS)
    for put_back in undo:
        put_back()
    total_ns = sum(clock.spent_ns.values())
    return {"whole": whole_us, **{step: whole_us * spent / total_ns for step, spent in clock.spent_ns.items()}}


async def _share_counted(turns: Callable[[bytes, int], Awaitable[float]], segment: bytes) -> float:
    """A slice with metrics, ids and deadlines against one without: nothing counted, the client's id, no timeout."""
    with_us = await turns(segment, REQUESTS // 8)
    named = segment.replace(b"Host: localhost", b"Host: localhost\r\nX-Request-Id: 0", 1)
    await turns(named, TOGETHER)  # another head: it is parsed once
    before = Stats.answered, Stats.executed, QueuePolicy.timeout_ns
    Stats.answered = Stats.executed = lambda *_: None  # type: ignore[assignment, method-assign]
    QueuePolicy.timeout_ns = lambda *_: 0  # type: ignore[assignment, method-assign]
    try:
        without_us = await turns(named, REQUESTS // 8)
    finally:
        Stats.answered, Stats.executed, QueuePolicy.timeout_ns = before  # type: ignore[method-assign]
    await turns(segment, TOGETHER)
    return 1 - without_us / with_us


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
    shares = " / ".join(f"{figures['counted']:.1%}" for figures in found.values())
    rows = [
        {
            "what": f"metrics, request ids and deadlines: share of a request's CPU time without sockets and kernel "
            f"({' / '.join(found)} at once)",
            "measured": shares, "goal": "<= 2 %", "command": COMMAND,
        }
    ]  # fmt: skip
    return {"rows": rows, "table": _table(found), "command": COMMAND, "us": found}


def _table(found: dict[str, dict[str, float]]) -> list[str]:
    """Markdown: a row for each step, a column for each way to ask."""
    lines = [f"| CPU time of a request, us | {' | '.join(f'{name} at once' for name in found)} |"]
    lines.append("|---|" + "---|" * len(found))
    for step in (*(step for step, _ in STEPS), "whole"):
        cells = " | ".join(f"{figures.get(step, 0.0):.1f}" for figures in found.values())
        lines.append(f"| {'all of these' if step == 'whole' else step} | {cells} |")
    return lines
