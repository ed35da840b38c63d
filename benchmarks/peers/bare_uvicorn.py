"""uvicorn with nothing behind it: what a Python server costs before it does anything.

It runs in this project's environment: the very uvicorn, uvloop and httptools that bitserve stands on.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.peers.models import Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import answers, started
from benchmarks.peers.wording import BINARY, JSON, Binary, Json, Wording
from benchmarks.wrk import Sent
from tests.support.servers import free_port

__all__ = ["NAME", "up"]

NAME = "bare uvicorn"
_HANDLER = Path(__file__).parent / "handlers" / "bare.py"
_READY = "ready"


@dataclass(frozen=True)
class _At:
    """The same request for another path, by which the application knows its constant."""

    path: str
    wording: Wording

    def put(self, served: Served, number: int, array: np.ndarray) -> Sent:
        return replace(self.wording.put(served, number, array), path=self.path)

    def read(self, served: Served, rows: int, body: bytes) -> tuple[int | None, np.ndarray]:
        return self.wording.read(served, rows, body)


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """Answers as long as those of the first model to one row."""
    constants = _constants(models[0])
    kept = folder / "constants"
    kept.mkdir()
    for name, body in {**constants, _READY: b"1"}.items():
        (kept / name).write_bytes(body)
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(_HANDLER), str(port), str(kept)]
    wordings = {BINARY: _At(f"/{BINARY}", Binary()), JSON: _At(f"/{JSON}", Json())}
    with started(command, folder, lambda: answers(f"{base}/{_READY}")) as tree:
        yield Peer(NAME, base, tree, wordings, constants)


def _constants(served: Served) -> dict[str, bytes]:
    row = np.random.default_rng(0).standard_normal((1, served.classes), dtype=np.float32)
    tensor = {"name": served.output, "datatype": "FP32", "shape": [1, served.classes]}
    whole = {"id": "0", "model_name": served.name, "model_version": "1"}
    as_json = {**whole, "outputs": [{**tensor, "data": row.ravel().tolist()}]}
    as_bytes = {**whole, "outputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}]}
    return {BINARY: _compact(as_bytes) + row.tobytes(), JSON: _compact(as_json)}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
