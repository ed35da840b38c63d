"""LitServe with a handler of ours, its batching on. Its calls are JSON of the handler's own making."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import answers, started
from benchmarks.peers.venvs import OPENVINO, made
from benchmarks.peers.wording import JSON, Plain
from engines.hardware import usable_threads
from tests.support.servers import free_port

__all__ = ["NAME", "REQUIREMENTS", "up"]

NAME = "LitServe"
REQUIREMENTS = ("litserve==0.2.19", OPENVINO)
_HANDLER = Path(__file__).parent / "handlers" / "litserve_app.py"


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """One server process and one worker, for the first model alone: it serves one."""
    python = made("litserve", REQUIREMENTS)
    model = folder / "model.onnx"
    model.write_bytes(models[0].model.SerializeToString())
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [str(python), str(_HANDLER), str(port), str(model), str(usable_threads()), str(MAX_BATCH)]
    with started(command, folder, lambda: answers(f"{base}/health")) as tree:
        yield Peer(NAME, base, tree, {JSON: Plain("/predict")})
