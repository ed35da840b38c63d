"""BentoML with a service of ours, its adaptive batching on. Its calls are JSON, and its answers have no id."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.models import MAX_BATCH, Served
from benchmarks.peers.peer import Peer
from benchmarks.peers.processes import answers, started
from benchmarks.peers.venvs import OPENVINO, made
from benchmarks.peers.wording import JSON, Bare
from engines.hardware import usable_threads
from tests.support.servers import free_port

__all__ = ["NAME", "REQUIREMENTS", "up"]

NAME = "BentoML"
REQUIREMENTS = ("bentoml==1.4.40", OPENVINO)
_HANDLERS = Path(__file__).parent / "handlers"


@contextlib.contextmanager
def up(models: Sequence[Served], folder: Path) -> Iterator[Peer]:
    """One worker, for the first model alone."""
    python = made("bentoml", REQUIREMENTS)
    for name in ("engine.py", "bentoml_app.py"):
        shutil.copy(_HANDLERS / name, folder)
    (folder / "model.onnx").write_bytes(models[0].model.SerializeToString())
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "bentoml", "serve", "bentoml_app:Rows", "--host", "127.0.0.1", "--port", str(port)]
    env = {
        "BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True",
        "ROWS_MODEL": str(folder / "model.onnx"), "ROWS_THREADS": str(usable_threads()), "ROWS_MOST": str(MAX_BATCH),
    }  # fmt: skip
    with started(command, folder, lambda: answers(f"{base}/readyz"), env) as tree:
        yield Peer(NAME, base, tree, {JSON: Bare("/rows")})
