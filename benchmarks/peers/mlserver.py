"""MLServer with a runtime of ours: the protocol in JSON, its adaptive batcher on. It does not read tensors as bytes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import answers, started
from benchmarks.peers.venvs import OPENVINO, made
from benchmarks.peers.wording import JSON, Json
from engines.hardware import usable_threads
from tests.support.servers import free_port

__all__ = ["NAME", "REQUIREMENTS", "up"]

NAME = "MLServer"
REQUIREMENTS = ("mlserver==1.7.1", OPENVINO)
_HANDLERS = Path(__file__).parent / "handlers"
_MAX_BATCH_TIME_S = 0.001


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """In one process: with a second one for inference, as it comes, every call would cross between them."""
    python = made("mlserver", REQUIREMENTS)
    for name in ("engine.py", "mlserver_model.py"):
        shutil.copy(_HANDLERS / name, folder)
    http, grpc, metrics = free_port(), free_port(), free_port()
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0,
        "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    for served in models:
        _place(folder / served.name, served)
    base = f"http://127.0.0.1:{http}"
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    env = {"PYTHONPATH": str(folder)}
    with started(command, folder, lambda: answers(f"{base}/v2/health/ready"), env) as tree:
        yield Peer(NAME, base, tree, {JSON: Json()})


def _place(model: Path, served: Served) -> None:
    model.mkdir()
    (model / "model.onnx").write_bytes(served.model.SerializeToString())
    settings = {
        "name": served.name, "implementation": "mlserver_model.Rows", "max_batch_size": MAX_BATCH,
        "max_batch_time": _MAX_BATCH_TIME_S,
        "parameters": {"uri": "./model.onnx", "extra": {"threads": usable_threads(), "output": served.output}},
    }  # fmt: skip
    (model / "model-settings.json").write_text(json.dumps(settings))
